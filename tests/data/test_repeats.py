"""Rows of the same prompt and response that list other candidates each: one example with the lists of all."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.sources.examples import TOO_LATE, Example, open_source
from data.sources.repeats import repeated
from tests.support.source_rows import ROWS, lines, listed

PAIRS = "prompt=prompt,completion=chosen,candidates=rejected"


def pair(prompt: str, rejected: Any, chosen: str = "c") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def lists(examples: list[Example]) -> dict[tuple[str, str], list[Any] | None]:
    return {(e.prompt, e.response): e.alternatives for e in examples if e.problem is None}


@pytest.mark.parametrize("streaming", [True, False])
def test_a_row_per_pair_becomes_one_example_per_prompt(
    read: Any, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rows = [pair("p", "a"), pair("p", "b"), pair("p", ["a", "d"]), pair("p", "x", "other"), pair("q", None)]
    found = read(rows, columns=PAIRS, streaming=streaming)
    assert [e.problem for e in found] == [None] * 3
    assert lists(found) == {("p", "c"): ["a", "b", "a", "d"], ("p", "other"): ["x"], ("q", "c"): []}
    (plain,) = read([rows[0]], columns=PAIRS)
    assert plain.id in {e.id for e in found}
    if streaming:
        assert caplog.messages[-1].endswith(": 2 rows of the same prompt and response as another merged into it")


def test_a_table_says_how_many_and_merges_rows_that_lie_apart(tmp_path: Path, own_cache: None) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [pair(f"p{i}", f"{turn}{i}") for turn in "ab" for i in range(300)]
    path.write_bytes(lines([*rows, pair("single", "s")]))
    source = open_source(str(path), "prompt-completion", columns=PAIRS.split(","))
    assert source.num_examples == 301
    assert source.summary == (
        "601 rows: 299 train, 302 held out; 300 rows of the same prompt and response as another merged into it"
    )
    assert lists(list(source)) == {(f"p{i}", "c"): [f"a{i}", f"b{i}"] for i in range(300)} | {("single", "c"): ["s"]}
    assert list(source) == list(source)
    train, test = (
        {e.prompt for e in open_source(str(path), "prompt-completion", half, columns=PAIRS.split(","))}
        for half in ("train", "test")
    )
    assert train | test == {e.prompt for e in source}
    assert len(train & test) <= 1  # a row of the middle may lie in both halves
    some = open_source(str(path), "prompt-completion", "train", 7, columns=PAIRS.split(","))
    assert {len(e.alternatives or ()) for e in some} == {2}
    assert (some.num_examples, len(list(some))) == (7, 7)
    rows[0]["rejected"] = "z"
    path.write_bytes(lines([*rows, pair("single", "s")]))
    other = open_source(str(path), "prompt-completion", columns=PAIRS.split(","))
    assert (other.fingerprint, other.lists_sha256 == source.lists_sha256) == (source.fingerprint, False)


def test_a_stream_cannot_go_back_and_says_so(read: Any) -> None:
    found = read([pair("p", "a"), pair("q", "b"), pair("p", "d")], columns=PAIRS)
    assert [e.problem for e in found] == [None, None, TOO_LATE]
    assert lists(found) == {("p", "c"): ["a"], ("q", "c"): ["b"]}


@pytest.mark.parametrize("streaming", [True, False])
def test_scores_are_merged_with_what_they_are_of(read: Any, streaming: bool) -> None:
    rows = [
        {"prompt": "p", "completion": "c", "others": ["a", "b"], "marks": [1, "N/A"]},
        {"prompt": "p", "completion": "c", "others": [], "marks": []},
        {"prompt": "p", "completion": "c", "others": ["d", 7], "marks": [3, 4]},
    ]
    (found,) = read(rows, columns="candidates=others,scores=marks", streaming=streaming)
    assert listed(found) == [("a", 1.0), ("d", 3.0)]
    assert found.unusable == ["score is no number", "response is not text"]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_row_that_cannot_be_used_stands_for_no_other(read: Any, streaming: bool) -> None:
    bad = {"prompt": "p", "completion": "c", "others": ["a"], "marks": [1, 2]}
    good = {**bad, "others": ["b"], "marks": [3]}
    found = read([bad, good, {**good, "others": ["d"]}], columns="candidates=others,scores=marks", streaming=streaming)
    assert sorted(e.problem[0] if e.problem else "" for e in found) == ["", "scores do not match candidates"]
    (one,) = [e for e in found if e.problem is None]
    assert listed(one) == [("b", 3.0), ("d", 3.0)]


@pytest.mark.parametrize("streaming", [True, False])
def test_without_candidates_what_repeats_is_a_duplicate(read: Any, streaming: bool) -> None:
    found = read([ROWS[0], ROWS[1], ROWS[0]], streaming=streaming)
    assert sorted(e.problem[0] if e.problem else "" for e in found) == ["", "", "duplicate"]


def test_rows_are_found_by_id_in_the_order_of_the_source() -> None:
    ids = np.array([[1, 0], [2, 0], [1, 0], [3, 0], [2, 0], [1, 0]])
    usable = np.array([True, True, True, True, False, True])
    assert repeated(ids, usable, np.array([5, 4, 3, 2, 1, 0])) == {5: [0, 2, 5]}
    assert repeated(ids, usable, np.array([3, 1])) == {}
    assert repeated(ids, usable, np.array([], int)) == {}
