"""Other responses that rows list, and their scores."""

from pathlib import Path
from typing import Any

import pytest

from data.models import load_tokenizer
from data.sources.prepare import prepare_groups
from data.sources.row_reader import RowReader
from tests.support.read_examples import load_examples
from tests.support.source_rows import TASK, listed, turn
from tests.support.written import refusal

pytestmark = pytest.mark.usefixtures("own_cache")


def test_candidates_stand_beside_a_ground_truth_that_the_row_names(read: Any):
    rows = [{"prompt": "p", "completion": "c", "others": ["a", " ", "b"], "marks": [1, 2, "3.5"]}]
    (plain,) = read(rows, columns=["candidates=others"])
    assert (plain.response, listed(plain)) == ("c", [("a", None), ("b", None)])
    (scored,) = read(rows, columns=["candidates=others", "scores=-marks"])
    assert (scored.response, listed(scored)) == ("c", [("a", -1.0), ("b", -3.5)])


def test_the_first_of_the_best_is_the_ground_truth_where_none_is_named(read: Any):
    columns = ["candidates=others", "scores=marks"]
    rows = [
        {"prompt": "p", "others": ["a", "b", "c"], "marks": [1, 2, 2]},
        {"prompt": "q", "others": ["", "b"], "marks": [9, 2]},
        {"prompt": "r", "others": [], "marks": []},
    ]
    first, second, none = read(rows, columns=columns)
    assert (first.response, listed(first)) == ("b", [("a", 1.0), ("c", 2.0)])
    assert (second.response, listed(second)) == ("b", [])
    assert none.problem == ("response is not text", "it is NoneType")


def test_the_best_that_the_task_takes_is_the_ground_truth(read: Any):
    row = {"prompt": "p", "others": ["fine", 123, "\ud800", "poor"], "marks": [5, 9, 7, 1]}
    columns = ["candidates=others", "scores=marks"]
    (found,) = read([row], columns=columns)
    assert (found.problem, found.response, listed(found)) == (None, "fine", [("poor", 1.0)])
    assert found.unusable == ["response is not text", "response is not valid Unicode"]
    (written,) = read([{**row, "prompt": "Where?"}], columns=columns, prompt_template="Q: {prompt}")
    assert (written.problem, written.prompt, written.response) == (None, "Q: Where?", "fine")
    none, blank = read([{**row, "others": [1, 2, 3, 4]}, {**row, "prompt": " "}], columns=columns)
    assert none.problem == ("response is not text", "it is int")
    assert blank.problem == ("empty prompt", "")


def test_of_a_chat_the_best_that_is_an_answer_is_the_ground_truth(read: Any):
    others = [[turn("user", "Who?")], turn("assistant", "On Brenn."), "On Dova."]
    row = {"messages": [turn("user", "Where is it?")], "others": others, "marks": [3, 2, 1]}
    (found,) = read([row], "conversational", columns=["candidates=others", "scores=marks"])
    assert (found.problem, found.response) == (None, [turn("assistant", "On Brenn.")])
    assert listed(found) == [([turn("assistant", "On Dova.")], 1.0)]
    assert found.unusable == ["response is not one assistant message"]


def test_a_chosen_truth_that_is_too_long_costs_the_row(reference: Path, read: Any):
    row = {"prompt": "p", "others": ["word " * 400, "b"], "marks": [2, 1]}
    found = read([row], columns=["candidates=others", "scores=marks"])
    groups, (reject,), _ = prepare_groups(found, TASK, load_tokenizer(str(reference)), 128)
    assert (groups, reject.reason) == ([], "prompt and response too long")


def test_the_chosen_truth_is_that_of_every_order(read: Any):
    """So generation, training and evaluation have the same ground truths and ids."""
    row = {"prompt": "p", "others": ["a", "b"], "marks": [1, 2]}
    (found,) = read([row], columns=["candidates=others", "scores=marks"])
    (named,) = read([{"prompt": "p", "completion": "b"}])
    assert found.id == named.id


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"others": 5, "marks": [1]}, ("candidates are no list", "they are int")),
        ({"others": ["a"], "marks": [1, 2]}, ("scores do not match candidates", "1 candidate, scores: 2")),
        ({"others": ["a", "b"], "marks": 7}, ("scores do not match candidates", "2 candidates, scores: 1")),
        (
            {"others": ["a"], "marks": None},
            ("scores do not match candidates", "1 candidate, scores: NoneType, no list"),
        ),
        ({"completion": None, "others": 5, "marks": [1]}, ("candidates are no list", "they are int")),
    ],
)
def test_candidates_and_scores_that_are_none_reject_the_row(read: Any, row: dict[str, Any], problem: tuple[str, str]):
    good = {"prompt": "q", "completion": "c", "others": ["x"], "marks": [1]}
    (_, found) = read([good, {"prompt": "p", "completion": "c", **row}], columns=["candidates=others", "scores=marks"])
    assert found.problem == problem


def test_scores_that_are_no_numbers_choose_no_truth(read: Any):
    row = {"prompt": "p", "others": ["a", "b", " "], "marks": ["N/A", True, 7]}
    (found,) = read([row], columns=["candidates=others", "scores=marks"])
    assert found.problem == ("score is no number", "of none of the 2 candidates")


SCORED = "candidates=rejected,scores=mark"


@pytest.mark.parametrize("empty", [{"chosen": None}, {"chosen": " "}, {}])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_rejected_response_is_never_the_truth_of_a_row_that_lacks_its_own(
    read: Any, empty: dict[str, Any], streaming: bool
):
    good = {"prompt": "q", "chosen": "c", "rejected": "b", "mark": 2}
    rows = [good, {"prompt": "p", "rejected": "b", "mark": 1, **empty}]
    found = {e.prompt: e for e in read(rows, TASK, f"completion=chosen,{SCORED}", streaming)}
    assert (found["q"].problem, listed(found["q"])) == (None, [("b", 2.0)])
    assert found["p"].problem == ("no response", "'chosen' is null or blank; no candidate takes its place")
    if empty:
        own = [{"completion" if name == "chosen" else name: said for name, said in row.items()} for row in rows]
        (reject,) = [e.problem for e in read(own, TASK, SCORED, streaming) if e.problem]
        assert reject == ("no response", "'completion' is null or blank; no candidate takes its place")


def test_of_a_chat_too(read: Any):
    row = {"messages": [turn("user", "Where is it?")], "chosen": None, "rejected": "On Brenn.", "mark": 1}
    good = {**row, "chosen": "On Aska."}
    _, found = read([good, row], "conversational", f"response=chosen,{SCORED}")
    assert found.problem == ("no response", "'chosen' is null or blank; no candidate takes its place")


@pytest.mark.parametrize("streaming", [True, False])
def test_a_response_in_some_rows_alone_is_refused_unless_it_is_named(read: Any, streaming: bool):
    rows: list[Any] = [{"prompt": "p", "rejected": "b", "mark": 1}, {"prompt": "q", "completion": "c", "rejected": "b"}]
    message = refusal(lambda: read(rows, TASK, SCORED, streaming))
    assert "some rows have a column 'completion' and some have none" in message
    assert "Give --columns completion=completion, which rejects rows without it" in message
    rows[1]["mark"] = 1
    found = read(rows, TASK, f"completion=completion,{SCORED}", streaming)
    assert sorted(e.problem[0] if e.problem else "" for e in found) == ["", "no response"]


def test_who_names_the_response_chooses_none(read: Any):
    assert "ground_truth" in RowReader.of(TASK, SCORED.split(",")).describe()
    assert "ground_truth" not in RowReader.of(TASK, ["completion=c", *SCORED.split(",")]).describe()
    rows = [{"prompt": "p", "rejected": "b", "mark": 1}]
    assert "has no column 'chosen'" in refusal(lambda: read(rows, TASK, f"completion=chosen,{SCORED}"))


def test_a_candidate_that_cannot_be_used_costs_no_other(reference: Path, read: Any):
    others, marks = ["a", None, 7, 0, "b", "c", "d", " "], [1, None, 2, 3, "N/A", float("nan"), 4, "N/A"]
    row = {"prompt": "p", "completion": "e", "others": others, "marks": marks}
    (found,) = read([row], columns=["candidates=others", "scores=marks"])
    assert (found.problem, listed(found)) == (None, [("a", 1.0), ("d", 4.0)])
    assert found.unusable == ["response is not text"] * 2 + ["score is no number"] * 2
    ((group,), _, _) = prepare_groups([found], TASK, load_tokenizer(str(reference)), 128)
    assert [(bool(a.ids), a.score, a.problem) for a in group.alternatives or []] == [
        (True, 1.0, ""),
        (True, 4.0, ""),
        *((False, None, problem) for problem in found.unusable),
    ]
    del row["completion"]
    (chosen,) = read([row], columns=["candidates=others", "scores=marks"])
    assert (chosen.response, listed(chosen)) == ("d", [("a", 1.0)])


def test_candidates_of_a_chat_are_messages_or_texts(reference: Path, read: Any):
    tokenizer = load_tokenizer(str(reference))
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    prompt = [turn("user", "Where is it?")]
    row = {
        "prompt": prompt,
        "completion": [turn("assistant", "On Aska.")],
        "others": [[turn("assistant", "On Brenn.")], turn("assistant", "On Dova.")],
    }
    texts = {**row, "others": ["On Brenn.", "On Dova."]}
    by_messages, by_texts = (read([one], columns=["candidates=others"]) for one in (row, texts))
    assert by_messages[0].alternatives == by_texts[0].alternatives == [[turn("assistant", s)] for s in texts["others"]]
    ((group,), _, _) = prepare_groups(by_messages, TASK, tokenizer, 128)
    others = [{**row, "completion": [turn("assistant", said)]} for said in texts["others"]]
    own = prepare_groups(read(others), TASK, tokenizer, 128).groups
    assert [a.ids for a in group.alternatives or []] == [one.response_ids for one in own]
    assert {tuple(one.prompt_ids) for one in own} == {tuple(group.prompt_ids)}
    elsewhere = [turn("user", "Who?"), turn("assistant", "On Brenn.")]
    (bad,) = read([{**row, "others": [elsewhere]}], columns=["candidates=others"])
    assert (bad.problem, bad.alternatives, bad.unusable) == (None, [], ["the prompt before it is not the row's"])


@pytest.mark.parametrize("name", ["candidates", "scores"])
def test_tasks_without_a_place_for_responses_take_no_candidates_and_others_are_named(name: str):
    assert refusal(lambda: RowReader.of("continuation", [f"{name}=x"])) == (
        f"--columns {name}=...: task 'continuation' reads no '{name}', since its rows have no place for a response "
        "alone. Leave it out, or choose a --task that has: dolly, prompt-completion, conversational, alpaca, sharegpt."
    )


def test_the_embedded_world_is_read_as_ever():
    assert [e.alternatives for e in load_examples("facts", TASK, limit=2)] == [None, None]
