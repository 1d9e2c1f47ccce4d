"""A judge against people's labels: the file, the numbers of judges whose ways are known, the command."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.shape import parse_json
from evaluation import judge_check
from evaluation.judging.base import Comparison, Outcome
from evaluation.judging.labels import LabelledPair, read_labels
from evaluation.judging.trust import COLUMNS, COST, confusion, in_words, measure
from tests.support.chat_server import ChatAPIStub
from tests.support.judged import longer

pytestmark = pytest.mark.usefixtures("api_environment")


def written(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def row(a: str, b: str, label: str, prompt: str = "Where?") -> dict[str, str]:
    return {"prompt": prompt, "answer_a": a, "answer_b": b, "label": label}


def pair(a: int, b: int, label: str) -> LabelledPair:
    return LabelledPair(Comparison("1", "p", "x" * a, "y" * b), label, 1)


def flip(letter: str) -> Outcome:
    return Outcome(0.5, flipped=True, verdicts=(letter, letter))


KEYS_OF_COST = {column.key for column in COLUMNS if column.section == COST}
A, B = Outcome(1.0, verdicts=("A", "B")), Outcome(0.0, verdicts=("B", "A"))


# --- the file ---


def test_several_labels_of_a_pair_are_votes_in_either_order_of_its_answers(tmp_path: Path) -> None:
    rows = [
        *(row("here", "there", "a"), row("there", "here", "b"), row("here", "there", "b")),  # a, a, b
        *(row("x", "yy", "a", "Which?"), "", row("x", "yy", "b", "Which?")),
        *(row("no", " no\n", "tie"), {**row("é", "o", "tie"), "annotator": 3}),
    ]
    found = read_labels(written(tmp_path / "labels.jsonl", rows))
    assert [(p.comparison.answer, p.comparison.other, p.label, p.people) for p in found.pairs] == [
        ("here", "there", "a", 3), ("x", "yy", "tie", 2), ("é", "o", "tie", 1)
    ]  # fmt: skip
    assert (found.rows, found.same) == (7, 1)
    assert [p.longer for p in found.pairs] == ["b", "b", ""]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (row("a", "b", "A"), "line 2: label is 'A', not one of a, b, tie."),
        ({"prompt": "p", "answer_a": "a", "label": "a"}, "line 2: answer_b is missing. A line reads {"),
        ({**row("a", "b", "a"), "prompt": 3}, "line 2: prompt is 3, not a text"),
        ("{", "line 2: Expecting property name"),
    ],
)
def test_a_line_that_is_no_label_is_refused_by_its_number(tmp_path: Path, line: Any, message: str) -> None:
    path = written(tmp_path / "labels.jsonl", [row("a", "b", "a"), line])
    with pytest.raises(UserError) as caught:
        read_labels(path)
    assert f"--labels '{path}', {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_pair_to_ask_about_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no pair of two different answers"):
        read_labels(written(tmp_path / "labels.jsonl", [row("a", "a", "tie")]))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_labels(str(tmp_path / "none.jsonl"))


# --- the numbers ---


def test_agreement_place_and_length_of_a_judge_are_what_they_are_by_hand() -> None:
    pairs = [pair(9, 1, "a"), pair(9, 1, "b"), pair(1, 9, "b"), pair(9, 1, "tie"), pair(1, 9, "tie"), pair(3, 3, "a")]
    outcomes = [A, A, B, A, flip("A"), Outcome(None, reason="unread")]
    found = measure(pairs, outcomes, {})
    assert found["agreement"].mean == pytest.approx(3 / 5)
    # People a 1, b 2, tie 2 of 5; judge a 3, b 1, tie 1.
    chance = (1 * 3 + 2 * 1 + 2 * 1) / 25
    assert found["kappa"].mean == pytest.approx((3 / 5 - chance) / (1 - chance))
    assert (found["agreement_decided"].mean, found["agreement_decided"].n) == (pytest.approx(2 / 3), 3)
    assert found["not_judged"].mean == 1
    assert (found["flip_rate"].mean, found["flip_rate"].n) == (0.2, 5)
    assert (found["first_rate"].mean, found["first_rate"].n) == (1.0, 1)
    assert found["longer"].mean == 1.0
    assert found["longer_people"].mean == pytest.approx(2 / 3)
    assert (found["longer_gap"].mean, found["longer_gap"].n) == (pytest.approx(1 / 3), 3)
    assert (found["longer_split"].mean, found["longer_split"].n) == (1.0, 1)
    assert (found["longer_against"].mean, found["longer_against"].n) == (1.0, 1)
    assert "verdicts" not in found
    counted = confusion(pairs, outcomes)
    assert counted["tie"] == {"a": 1, "b": 0, "tie": 1, "not judged": 0}
    assert counted["a"] == {"a": 1, "b": 0, "tie": 0, "not judged": 1}


def test_what_cannot_be_told_from_chance_is_not_said_to_be_a_preference() -> None:
    pairs = [pair(9, 1, "a"), pair(1, 9, "b")] * 20
    honest = measure(pairs, [A, B] * 20, {})
    assert in_words("m", honest)[1:] == [
        "m shows no preference for length beyond people's that can be told from chance: +0.0% on 40 pairs."
    ]
    first = measure(pairs, [flip("A")] * 40, {})
    assert in_words("m", first)[1] == (
        "m prefers what is shown first: 100.0% (91.2% to 100.0%) of 40 flips name the first."
    )
    second = measure(pairs, [flip("B")] * 38 + [flip("A")] * 2, {})
    assert in_words("m", second)[1].startswith("m prefers what is shown second: 5.0% (0.0% to ")
    wavering = measure(pairs, [flip("A"), flip("B")] * 20, {})
    assert in_words("m", wavering)[1].startswith(
        "m shows no preference for a place that can be told from chance: 50.0%"
    )
    short = measure([pair(9, 1, "a")] * 20, [A] * 10 + [B] * 10, {})
    assert in_words("m", short)[1].startswith("m lets the longer answer win less often than people do: -50.0% (-71.9%")


def test_the_cost_of_a_verdict_is_that_of_those_whose_tokens_are_known() -> None:
    spent = {"verdicts": 4, "without_tokens": 2, "input_tokens": 100, "output_tokens": 6, "cost": 3.0}
    found = measure([pair(1, 2, "a")] * 2, [A, A], spent)
    assert {key: found[key].mean for key in found if key in KEYS_OF_COST} == {
        "verdicts": 4, "input_per_verdict": 50, "output_per_verdict": 3, "cost_per_verdict": 1.5, "cost_per_pair": 3.0
    }  # fmt: skip
    assert math.isnan(found["cost_per_pair"].standard_error)
    assert "cost_per_verdict" not in measure([pair(1, 2, "a")], [A], {**spent, "cost": None})


# --- the command ---


def labels(folder: Path) -> str:
    """People prefer the longer answer of even questions, the shorter one of odd ones."""
    rows = [row("x" * (n % 7 + 1), "y" * 8, "b" if n % 2 == 0 else "a", f"Question {n}?") for n in range(10)]
    return written(folder / "labels.jsonl", rows)


def test_the_command_writes_what_it_prints_and_pays_nothing_twice(
    server: ChatAPIStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *("--labels", labels(tmp_path), "--out", str(tmp_path / "out"), "--judge.model", "m"),
        *("--judge.base_url", server.url, "--judge.input_price", "1", "--judge.output_price", "2"),
    ]
    server.answer = longer
    judge_check.main(words)
    printed = capsys.readouterr().out
    of = rf"10 pairs of \d+ prompts?, from 10 labels of {re.escape(str(tmp_path))}"
    assert re.search(f"(?m)^{of}", printed)
    assert "m agrees with people on 50.0% (20.0% to 80.0%) of 10 pairs; kappa 0.00." in printed
    assert "m lets the longer answer win more often than people do: +50.0%" in printed
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {
        "judge_check.md", "judge_check.json", "store", "evaluation_log.txt"
    }  # fmt: skip
    page = (tmp_path / "out" / "judge_check.md").read_text()
    for heading in ("# Judge check", "## Agreement with people", "## Preference for a place", "## Length", "## Cost"):
        assert f"{heading}\n" in page
    numbers = parse_json((tmp_path / "out" / "judge_check.json").read_bytes())
    assert numbers["judge_check_version"] == 1
    assert numbers["job"]["labels"]["pairs"] == 10
    assert numbers["labels_by_judge"]["m"]["a"] == {"a": 0, "b": 5, "tie": 0, "not judged": 0}
    measured = {m["metric"]: m for m in numbers["measurements"]}
    assert (measured["agreement"]["mean"], measured["flip_rate"]["mean"], measured["verdicts"]["mean"]) == (0.5, 0, 20)
    assert measured["cost_per_verdict"]["mean"] == pytest.approx((server.bill[0] + 2 * server.bill[1]) / 20 / 1e6)
    judge_check.main(words)
    assert len(server.requests) == 20
    page = (tmp_path / "out" / "judge_check.md").read_text()
    capsys.readouterr()
    assert judge_check.main([*words, "--judge.temperature", "1"]) == 2
    assert "already holds a check with other settings (judge)" in capsys.readouterr().err
    Path(labels(tmp_path)).write_text(json.dumps(row("one", "two", "tie")) + "\n")
    assert judge_check.main(words) == 2
    assert "already holds a check with other settings (labels)" in capsys.readouterr().err
    assert len(server.requests) == 20
    assert page == (tmp_path / "out" / "judge_check.md").read_text()


def test_a_panel_is_checked_judge_by_judge_and_as_a_whole(
    server: ChatAPIStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda request: ("A", "stop") if request["model"] == "first" else longer(request)
    given = ["--labels", labels(tmp_path), "--out", str(tmp_path / "out"), "--judge.base_url", server.url]
    judge_check.main([*given, "--judge.model", "m", "first", "n"])
    printed = capsys.readouterr().out
    rows = re.findall(r"(?m)^ (m|first|n|majority) ", printed)
    assert rows[:4] == ["m", "first", "n", "majority"]
    assert "first prefers what is shown first: 100.0% (69.2% to 100.0%) of 10 flips name the first." in printed
    assert "Two judges of the panel agree on 33.3% of 10 pairs; Fleiss' kappa " in printed


def test_what_the_command_cannot_use_is_refused_before_anything_is_asked(
    server: ChatAPIStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    given = ["--labels", labels(tmp_path), "--judge.base_url", server.url]
    for words, message in (
        ([*given, "--out", str(tmp_path / "out")], "a judge needs --judge.model"),
        ([*given, "--judge.model", "m", "--out", str(tmp_path / "other")], "already holds 'notes.txt'"),
        (["--out", str(tmp_path / "out"), "--judge.model", "m"], "needs --labels"),
    ):
        assert judge_check.main(words) == 2
        assert message in capsys.readouterr().err
    assert server.requests == []
    assert not (tmp_path / "out").exists()
