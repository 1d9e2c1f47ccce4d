"""The judge's question to the letter, and the rules by which its answer is read."""

import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from data.command.errors import UserError
from evaluation.judging.question import LONGEST_VERDICT, parse_verdict, read_template

# --- questions ---


def test_the_papers_templates_are_asked_to_the_letter() -> None:
    assert read_template("dolly").fill("Who?", "Ada.", "Bob.") == (
        "For the following query to a chatbot, which response is more helpful?\n Query: Who?\n Response A: Ada.\n"
        ' Response B: Bob.\n State only "A" or "B" to indicate which response is more helpful.\n More helpful:'
    )
    assert read_template("wiki").fill("It", "was.", "is.") == (
        "For the following prefix, which continuation is better?\n Prefix: It\n Continuation A: was.\n"
        ' Continuation B: is.\n State only "A" or "B" to indicate which continuation is more helpful.\n Better:'
    )


def test_white_space_around_an_answer_tells_nobody_where_it_comes_from() -> None:
    template = read_template("dolly")
    assert template.fill("Who?\n", " Ada. \n", "Bob.") == template.fill("Who?", "Ada.", "Bob.")


def test_braces_are_text_in_a_users_template_and_in_what_is_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text('Write {"better": "A"} or {b}.\n{}|{}|{}!\n\n', encoding="utf-8")
    template = read_template(str(path))
    assert template.fill("{}", "{0} {a}", "%s {}") == 'Write {"better": "A"} or {b}.\n{}|{0} {a}|%s {}!'
    assert template.name == str(path)
    path.write_bytes(path.read_bytes().rstrip())
    assert read_template(str(path)).sha256 == template.sha256 != read_template("dolly").sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{} or {}?", "has 2 fields {}; it needs three"),
        (b"{} {} {} {}", "has 4 fields {}"),
        (b"", "has 0 fields"),
        (b"\xff{}{}{}", "cannot be read: 'utf-8' codec"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_template(str(path))
    assert "\n" not in str(caught.value)


def test_a_template_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"'doly' cannot be read: No such file .* Did you mean 'dolly'\?"):
        read_template("doly")


# --- answers ---


READ = {
    "A": [
        *("A", "a", " A\n", "A.", "(A)", "**A**", '"A"', "“A”", "[[A]]", "`a`", "A:", "_A_"),
        *("Response A", "response a", "Answer: A", "answer: a", "More helpful: A", "Option **A**", "answer: a, as it"),
        *("A is more helpful", "A: it is longer", "A, because it", "Response A provides a more detailed"),
        *("The more helpful response is A.", "I choose A", "I\u2019d say A", r"\boxed{A}", "<answer>A</answer>"),
        *("<think>B is short, A is long</think>\n\nA", "Response A is better than the other", "Thus, A is more"),
        *("A provides more detail", "A gives a full answer", "A answers the question", "**A** answers the question"),
        *("A also provides more detail", "A clearly explains it", "A better answers the question", "A would help more"),
        *("A more helpful", "A more helpful.", "**A** better", "A for its detail", "A due to it", "A in my view"),
        *("A\n\nIt gives more detail", "A - more detail", "A (more detailed)", "Answer: A provides more"),
        *("Response A is more helpful because it", "A is better than", "A because", "A. The reason is"),
        *("A is better than B", "Response A is more helpful than Response B.", "I prefer A: it says more than B."),
        *("Response A is slightly better", "Response A is much more helpful", "A is clearly the better response"),
        *("Response A is the more helpful response.", "A would be preferable", "A seems to be the best", "A wins."),
        *("A) It is", "A is superior", "Response A is my preferred one", "A offers more specific advice"),
        *("Response A provides a clear and", "Response A gives more relevant", "Continuation A flows more naturally"),
        *("Continuation A is more coherent", "Continuation A makes more sense", '"A" is better'),
        *("I prefer A", "I prefer response A.", "My choice: A", "Verdict: A", "The winner is A", "The better one is A"),
        *("I think A is better", "I would go with A, as", "The best response is (A).", "Answer:\n\n**A**", "[[A]]: it"),
        *("The first names a date. Answer: A", "It gives more detail.\nA", "A. Response A is more helpful because A"),
        *("A is a more detailed and", "A is a bit better", "A, since it is", "A reads more naturally"),
    ],
    "B": [
        *("B", "b", "B.", '"b"', "**B**", "Response B", "answer: b", "Better: B", "B is better"),
        *("Response B is a better", "B\n\nB", "Response “B” has more", "B more helpful", "I choose B over the other"),
        *("Response B is more helpful as it", "I prefer B", "B wins", "B: it is longer", "Continuation B is stronger"),
    ],
}  # fmt: skip
UNREAD = [
    *("", " \n", ".", "C", "AB", "AA", "neither", "Both", "Both A and B", "A or B", "A/B", "A and B", "A B"),
    *("Neither A", "not A", "B isn't helpful", "B isn\u2019t helpful", "A tie", "It's a tie: A", "A = B", "A draw"),
    *("A good question", "A response that", "a better", "This is a", "As an AI model, I", "I cannot say"),
    *("Response A and Response B", "No response is better than B", "Continuation: A man walks into", "B-side"),
    *("<think>\nThe user wants A", "A-level", "Answer: A good one", "B is less helpful", "A's", "None: B"),
    *("A better response would be B", "A more helpful response would", "A better, fuller one", "A clearly better"),
    *("A student provides", "A previous answer", "A would-be author", "A for-profit firm", 'A "good" answer'),
    *("A Christmas tree", "A 5-star hotel", "I choose a", "I choose b", "It is a", "B draw", "B good question"),
    *("Option A good question", "answer: a is", "Response A is", "Response A provides", "Rejected:\n\nA"),
]  # fmt: skip
# What says the opposite, or nothing.
DENIED = [
    *("Response A is incorrect", "Response A is unhelpful", "A is wrong", "A is irrelevant", "A is too short"),
    *("Response A lacks detail", "Response A contains errors", "Anything but A", "Reject A", "Everything except A"),
    *("I prefer the response other than A", "The response better than A", "Discard A", "I dislike A", "Avoid A."),
    *("A is more confusing", "A is more likely to mislead", "A provides more irrelevant facts", "A has more mistakes"),
    *("A is no better", "A is hardly better", "A is never the best", "Response A is short", "Response A is vague"),
    *("A gives no answer", "A provides little detail", "A answers another question", "Response A with typos"),
    *("A: incorrect", "A. Wrong.", "Response (A) is short", "A) is vague", "A. A is vague", "A is better. A is vague"),
    *("The weaker one is A", "The loser is A", "Worst: A", "Less helpful: A", "Skip A, it is better so"),
    *("Response A contains factual inaccuracies.", "A contains specific false claims", "A contains factual"),
    *("A addresses the query incorrectly", "A answers the question poorly", "A: misleading", "A - off topic"),
    *("A provides information that is misleading", "A seems better at first, but the other one is more helpful"),
    *("A looks better, however the second is right", "Nothing is better than A", "A is no better than B"),
    *("A clearly contains flaws", "Response A, which is vague", "A, with gaps", "B's twin A", "The user wants A"),
]  # fmt: skip

OF_B = [re.sub(r"\bA\b", "B", answer) for answer in DENIED]


@pytest.mark.parametrize(("letter", "answers"), [*READ.items(), ("?", UNREAD), ("?", DENIED), ("?", OF_B)])
def test_an_answer_is_a_verdict_only_if_it_names_one_letter(letter: str, answers: list[str]) -> None:
    assert {answer: parse_verdict(answer) for answer in answers} == dict.fromkeys(answers, letter)


def swapped(answer: str) -> str:
    """A text with A and B exchanged where they stand alone."""
    return re.sub(r"(?<![^\W_])[ABab](?![^\W_])", lambda found: found[0].translate(EXCHANGED), answer)


EXCHANGED = str.maketrans("ABab", "BAba")


@pytest.mark.seconds
def test_a_verdict_for_a_is_read_as_readily_as_one_for_b() -> None:
    draw = random.Random(0)
    parts = "A B a b is has provides more helpful better response Answer: the because for-profit good . , : ( ) ** \n"
    drawn = [" ".join(draw.choices(parts.split(" "), k=draw.randint(1, 6))) for _ in range(20_000)]
    answers = [*READ["A"], *READ["B"], *UNREAD, *DENIED, *drawn]
    assert swapped("A b, A's bad_a") == "B a, B's bad_b"
    assert {a: parse_verdict(swapped(a)) for a in answers} == {a: swapped(parse_verdict(a)) for a in answers}
    assert min(Counter(map(parse_verdict, drawn)).values()) > 1000


@pytest.mark.parametrize(
    "part",
    [
        "a ",
        "A. ",
        "A is better. ",
        "I think A, because ",
        "n't",
        "than\n",
        "<a",
        "*",
        "more ",
        "A wins!",
        "aaaaaaa ",
        "!",
    ],
)
def test_an_answer_without_end_takes_no_time_without_end(part: str) -> None:
    started = time.process_time()
    parse_verdict("A is better" + part * (LONGEST_VERDICT // len(part) - 2))
    assert parse_verdict(part * (3_000_000 // len(part))) == "?"
    assert time.process_time() - started < 1
