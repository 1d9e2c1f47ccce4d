"""What a judge is asked, and what its answer says."""

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from data.errors import UserError, did_you_mean, first_line
from data.storage import sha256

FIELD = "{}"
# The paper's (ACL submission section 5 and appendix A.2, arXiv v1 appendix A.3); files of the same name.
TEMPLATES = ("dolly", "wiki")


@dataclass(frozen=True)
class Template:
    """A text with three fields {}: the prompt, the answer shown as A, the answer shown as B, in this order.

    Every other brace is text, in the template as in what is filled in.
    """

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return sha256(self.text.encode())

    def fill(self, prompt: str, a: str, b: str) -> str:
        """The question. White space around the three is left out: it could tell a judge where an answer comes from."""
        fields = (prompt.strip(), a.strip(), b.strip(), "")
        return "".join(part + field for part, field in zip(self.text.split(FIELD), fields, strict=True))


def read_template(name: str) -> Template:
    """The paper's template "dolly" or "wiki", or that of a UTF-8 file. White space at a file's end does not count.

    Raises:
        UserError: there is no such file, or it has not exactly three fields.
    """
    if name in TEMPLATES:
        text = (resources.files("evaluation") / "templates" / f"{name}.txt").read_text(encoding="utf-8")
        return Template(name, text.rstrip())
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8").rstrip()
    except (OSError, ValueError) as error:  # bad UTF-8 and a NUL in the name are ValueErrors
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"judge's template '{name}' cannot be read: {reason}.{did_you_mean(name, TEMPLATES)} Give "
            f"{' or '.join(TEMPLATES)}, or a text file."
        ) from error
    if (found := text.count(FIELD)) != 3:
        raise UserError(
            f"judge's template '{name}' has {found} fields {FIELD}; it needs three: the prompt, the answer shown as A "
            "and the answer shown as B."
        )
    return Template(name, text)


# Every rule is the same for A as for B: else pairs would drop out of a single order by who won them.
# Words after which a letter names an answer, whatever follows.
NOUNS = "response|continuation|option"
# Words after which even a small letter names an answer; else it may be the article.
LEADS = f"{NOUNS}|answer|choice|verdict|helpful|better"
UNDECIDED = re.compile(
    r"\b(?:or|nor|not|neither|both|either|tie|tied|equal|equally|same|none|unclear|cannot|worse|less|\w+n't)\b",
    re.IGNORECASE,
)
LETTER = re.compile(rf"(?:\b(?P<lead>(?i:{LEADS}))(?P<gap>\W{{1,6}}))?(?<![\w'])(?P<letter>[ABab])(?![\w'-])")
# What may follow a letter that names an answer and cannot follow the article "A": a verb, the beginning of a clause or
# phrase, or "better" with nothing behind it. Before any other word an article must be feared.
VERBS = (
    "is|was|has|had|did|does|would|could|should|seems|appears|looks|sounds|feels|wins|answers|responds|replies|provides|"
    "gives|offers|adds|includes|contains|covers|lists|names|states|says|tells|shows|explains|describes|details|"
    "addresses|clarifies|elaborates|discusses|mentions|presents|makes|keeps|goes|gets|uses|follows|stays|continues|fits|"
    "matches|flows|completes|captures|conveys|delivers|focuses|avoids|acknowledges|demonstrates|identifies|suggests|"
    "summarizes|summarises"
)
ADVERBS = r"[a-z]+ly|also|just|better|best"
CLAUSES = "because|since|as|for|by|with|in|over|due to|although|though|which|that|it"
LINK = (
    rf"(?:(?:(?:{ADVERBS})[ \t]+)?(?:{VERBS})|{CLAUSES})(?![\w'-])"  # not "A would-be" and "A for-profit"
    r"|(?:more helpful|better)\W*\Z"
)
NOUN_PHRASE = re.compile(rf"[ \t]+(?!{LINK})[\"'\u201c\u2018]?\w")


def parse_verdict(answer: str) -> str:
    """ "A", "B", or "?" where the answer does not clearly name one of them.

    The rule: what is thought aloud before </think> does not count. Without signs and white space the answer may be the
    letter alone, in any case. Else one letter must stand alone in the text, and not both: a capital, or a small one
    that follows a word such as "answer". A could be an article, as in "A good question": before another word than a
    verb, "because" and the like the letter, B too, must follow "response", "continuation" or "option". With a word such
    as "or", "not" or "both" nothing is clear. With A and B exchanged every answer gives the other one.
    """
    said = answer.rpartition("</think>")[2].replace("\u2019", "'")
    if "<think>" in said:  # cut before it came to an answer
        return "?"
    alone = re.sub(r"[\W_]+", "", said)
    if alone in ("A", "a", "B", "b"):
        return alone.upper()
    if UNDECIDED.search(said):
        return "?"
    said = re.sub(r"[*_`]+|</?\w+>", "", said)  # Markdown, tags
    named: set[str] = set()
    for found in LETTER.finditer(said):
        lead, letter = (found["lead"] or "").lower(), found["letter"]
        if letter.islower() and not lead:
            continue
        sure = lead in NOUNS.split("|") and found["gap"] == " "
        if not sure and NOUN_PHRASE.match(said, found.end()):
            return "?"
        named.add(letter.upper())
    return named.pop() if len(named) == 1 else "?"
