"""Metrics as entries: nothing but a metric's own module names it, and what all of them must have."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from data.command.errors import UserError
from evaluation.metrics import METRICS, in_order
from evaluation.metrics.base import AnswerMetric, columns_of
from evaluation.metrics.columns import DIFFERENCE, HIGHER, LOWER, from_json, to_json

EVALUATION = Path(__file__).parents[2] / "evaluation"
ALL = in_order(METRICS.names())
# The same word for something else: a column of answers, how texts were read, an opponent, keys of the page's data, a
# number of verdicts.
OTHER_MEANINGS = {
    "answers/generations.py": {"text"},
    "judging/chat_judge.py": {"unparsed"},
    "metrics/base.py": {"truth"},
    "metrics/likelihood.py": {"text"},
    "metrics/second_model.py": {"text"},
    "report/report_page.py": {"truth", "text", "correct"},
}


def named_in(path: Path) -> set[str]:
    """Texts in a source file that are the name of a metric or of a column."""
    words = {metric.name for metric in ALL} | {column.key for column in columns_of(ALL)}
    constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str) and value in words}


def test_a_metric_and_its_columns_are_named_in_its_own_module_alone() -> None:
    for path in EVALUATION.rglob("*.py"):
        where = str(path.relative_to(EVALUATION))
        own = {m.name: {m.name, *(c.key for c in m.columns)} for m in ALL}.get(path.stem, set())
        allowed = own if path.parent.name == "metrics" else set()
        assert named_in(path) <= allowed | OTHER_MEANINGS.get(where, set()), where


def test_the_metrics_come_in_one_order() -> None:
    names = ["win_rate", "correct", "reverse_kl", "nll", "similarity", "mauve", "truth", "ranking", "text"]
    assert [metric.name for metric in ALL] == names
    assert in_order(["text", "truth", "text"]) == in_order(["truth", "text"])
    with pytest.raises(UserError, match=r"unknown metric 'nl'\. Did you mean 'nll'"):
        in_order(["nl"])


def test_no_two_columns_have_one_name_and_each_has_all_that_a_report_needs() -> None:
    columns = columns_of(ALL)
    assert len({column.key for column in columns}) == len(columns)
    for column in columns:
        assert column.form.format(0.5)
        assert from_json(column.key, to_json(column)) == column
        assert column.criterion == any(
            column.key == m.columns[0].key for m in ALL if m.columns[0].better in (HIGHER, LOWER)
        )
    paired = {column.key for column in columns if column.key.endswith(DIFFERENCE)}
    assert paired == {
        "win_rate_difference", "correct_difference", "reverse_kl_difference", "nll_difference", "similarity_difference"
    }  # fmt: skip


def test_alpha_is_chosen_by_the_first_column_of_a_metric_of_answers() -> None:
    criteria = [m.columns[0] for m in ALL if issubclass(m, AnswerMetric) and m.columns[0].better in (HIGHER, LOWER)]
    assert [(column.key, column.better) for column in criteria] == [
        ("win_rate", HIGHER), ("correct", HIGHER), ("reverse_kl", LOWER), ("nll", LOWER), ("similarity", HIGHER),
        ("mauve", HIGHER),
    ]  # fmt: skip


def test_every_option_has_a_help() -> None:
    for metric in ALL:
        for option in fields(metric.Options):
            assert option.metadata["help"], option.name
