"""What `stats` advises, and that its tables fit the terminal."""

from pathlib import Path
from typing import Any

import pytest

from data.shards import NegativeSet
from negatives_gen.__main__ import main
from negatives_gen.verbs.advice import advice
from negatives_gen.verbs.stats import statistics


def found(**more: Any) -> dict[str, Any]:
    """Statistics of a set in which nothing stands out, and what is given."""
    usual = {"cut": 0.05, "duplicates": 0.0}
    none = {"rows_read": 100, "rows_rejected": 0, "rejected_by_reason": {}, "lends_across_halves": False}
    return {**none, "strategies": {"an": usual, "bn": {"cut": None, "duplicates": 0.0}}, **more}


def test_nothing_is_advised_where_nothing_stands_out() -> None:
    assert advice(found()) == []
    assert advice(found(strategies={}, rows_read=0)) == []


def test_a_set_whose_halves_lent_to_each_other_is_to_be_made_again() -> None:
    (said,) = advice(found(lends_across_halves=True))
    assert said.startswith("bn borrowed from both halves (train, test) before 0.7: ")


def test_cut_samples_ask_for_a_longer_limit() -> None:
    strategies = {
        "an": {"cut": 0.871, "duplicates": 0.0},
        "given": {"cut": 0.9, "duplicates": 0.0},  # no limit of ours
        "rn": {"cut": 0.19, "duplicates": 0.0},
    }
    assert advice(found(strategies=strategies)) == [
        "87% of the samples (an) were cut at the limit: raise --max_new_tokens"
    ]


def test_repeated_texts_and_rejected_rows_are_said() -> None:
    strategies = {"bn": {"cut": None, "duplicates": 0.25}}
    lines = advice(found(strategies=strategies, rows_rejected=12, rejected_by_reason={"too long": 9, "empty": 3}))
    assert lines == [
        "25% of the negatives (bn) have the text of another one of their group, which then counts twice: leave one "
        "strategy out, or ask it for fewer",
        "12% of the rows were rejected, most as 'too long': rejects.parquet says of each why",
    ]


def test_a_real_set_has_advice_or_not_as_its_numbers_say(negative_set: Path) -> None:
    assert advice(statistics(NegativeSet(str(negative_set)))) == []


@pytest.mark.parametrize("columns", [60, 80])
def test_no_line_of_stats_is_wider_than_the_terminal(
    columns: int, negative_set: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["stats", str(negative_set)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert sum("strategy" in line for line in lines) == 2  # the table in two parts
    assert not any("…" in line for line in lines)
