"""Metrics as entries: nothing but a metric's own module names it, and what all of them must have."""

import ast
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from evaluation.answers.answer_sets import AnswerSet
from evaluation.metrics import METRICS, as_asked, in_order
from evaluation.metrics.base import AnswerMetric, PromptMetric, Values, columns_of, fault_of, require_own
from evaluation.metrics.columns import HIGHER, LOWER, NEITHER, Column, from_json, to_json
from evaluation.paper import TABLES, differences
from evaluation.report.described import summary
from tests.support.commands import ROOT

EVALUATION = ROOT / "evaluation"
ALL = in_order(METRICS.names())
# In their order. There may be others, before, between and behind these.
KNOWN = [
    *("win_rate", "correct", "reverse_kl", "nll", "pmi", "similarity", "relevance", "mauve", "truth", "ranking", "text")
]
# The same word for something else: a column of answers, how texts were read, an opponent, keys of the page's data, a
# number of verdicts, outcomes of a comparison in words, a cell's text, properties of a style.
OTHER_MEANINGS = {
    "answers/generations.py": {"text"},
    "judging/chat_judge.py": {"unparsed"},
    "judging/panel.py": {"unparsed"},
    "judging/trust.py": {"flip_rate", "flips", "not_judged"},
    "metrics/base.py": {"truth"},
    "metrics/likelihood.py": {"text"},
    "metrics/second_model.py": {"text"},
    "report/report_page.css": {"truth", "text"},
    "report/report_page.html": {"text"},
    "report/report_page.js": {"truth", "text", "wins", "ties", "flips", "empty"},
    "report/report_page.py": {"truth", "text"},
}


def named_in(path: Path) -> set[str]:
    """Names of metrics and of columns in a file: texts that are one in Python's, and single words in a page's."""
    words = {metric.name for metric in ALL} | {column.key for column in columns_of(ALL)}
    if path.suffix != ".py":
        return words & set(re.findall(r"\w+", path.read_text()))
    constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str) and value in words}


def test_a_metric_and_its_columns_are_named_in_its_own_module_alone() -> None:
    paths = [path for path in EVALUATION.rglob("*") if path.suffix in (".py", ".js", ".html", ".css")]
    assert {path.suffix for path in paths} == {".py", ".js", ".html", ".css"}
    for path in paths:
        where = str(path.relative_to(EVALUATION))
        own = {m.name: {m.name, *(c.key for c in m.columns)} for m in ALL}.get(path.stem, set())
        allowed = own if path.parent.name == "metrics" else set()
        assert named_in(path) <= allowed | OTHER_MEANINGS.get(where, set()), where


def test_the_metrics_come_in_one_order() -> None:
    assert [metric.name for metric in ALL if metric.name in KNOWN] == KNOWN
    assert sorted(ALL, key=lambda metric: (metric.order, metric.name)) == ALL
    assert in_order(["text", "truth", "text"]) == in_order(["truth", "text"])
    assert [metric.name for metric in as_asked(["text", "truth", "text"])] == ["text", "truth"]
    with pytest.raises(UserError, match=r"unknown metric 'nl'\. Did you mean 'nll'"):
        in_order(["nl"])


def test_no_two_columns_have_one_name_and_each_has_all_that_a_report_needs() -> None:
    columns = columns_of(ALL)
    assert len({column.key for column in columns}) == len(columns)
    for column in columns:
        assert column.form.format(0.5)
        assert from_json(column.key, to_json(column)) == column
        assert column.criterion == any(
            column.key == m.columns[0].key
            for m in ALL
            if m.columns[0].better in (HIGHER, LOWER) and issubclass(m, AnswerMetric)
        )


def test_a_paired_column_of_a_metric_has_a_difference_beside_it_and_no_other_has() -> None:
    for metric in ALL:
        for column in metric.columns:
            differences = [c.key for c in columns_of([metric]) if c.key == column.difference_column().key]
            assert len(differences) == column.paired, column.key
    paired = {column.key for metric in ALL for column in metric.columns if column.paired}
    assert paired >= {"win_rate", "correct", "reverse_kl", "nll", "pmi", "similarity", "relevance"}
    assert paired >= {"answer_tokens", "early_ends"}


def test_alpha_is_chosen_by_the_first_column_of_a_metric_of_answers() -> None:
    criteria = [m.columns[0] for m in ALL if issubclass(m, AnswerMetric) and m.columns[0].better in (HIGHER, LOWER)]
    known = {
        "win_rate": HIGHER, "correct": HIGHER, "reverse_kl": LOWER, "nll": LOWER, "pmi": HIGHER,
        "similarity": HIGHER, "relevance": HIGHER, "mauve": HIGHER,
    }  # fmt: skip
    assert [(column.key, column.better) for column in criteria if column.key in known] == list(known.items())
    others = {m.columns[0].key: m.columns[0].better for m in ALL if m.name in KNOWN and m.columns[0] not in criteria}
    assert others == {"truth_logp": NEITHER, "ranking_accuracy": HIGHER, "answer_tokens": NEITHER}
    marked = {column.key for column in columns_of(ALL) if column.criterion}
    assert marked == {column.key for column in criteria}  # not ranking_accuracy, which a sweep never asks


class Odd(PromptMetric):
    """A metric whose one column is better in a way that means nothing."""

    name = "odd"
    summary = "no direction"
    columns = (Column("odd", "odd", "{:.1f}", "a number", better="high"),)

    def values(self, answers: AnswerSet) -> Values:
        return {}


def test_a_direction_that_means_nothing_is_a_fault_and_no_lower() -> None:
    assert fault_of(Odd) == "has better 'high', which is none of higher, lower, neither"
    assert [fault_of(metric) for metric in ALL] == [""] * len(ALL)


def test_a_metric_adds_only_keys_to_the_record_that_it_has_named() -> None:
    require_own(Odd, ["odd"])
    with pytest.raises(UserError, match=r"metric 'odd' adds 'models' to the record\. Name it in its record_schema\."):
        require_own(Odd, ["odd", "models"])


class HeldOut(Odd):
    """A metric of something that a report should name."""

    name = "held_out"

    @classmethod
    def summary_of(cls, record: Mapping[str, Any]) -> str:
        return f"{record['others']} others" if "others" in record else ""

    @classmethod
    def unlike_paper(cls, record: Mapping[str, Any], task: str) -> list[str]:
        return [f"no others of {task} there"] if "others" in record else []


def test_a_metric_from_outside_has_its_word_in_the_summary_and_beside_the_papers_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = {"data": {"name": "facts", "used": 4, "measured": 4}, "others": 7, "shards": {"name": "set", "groups": 5}}
    assert summary(job) == "4 prompts of facts; 5 groups of set."
    monkeypatch.setattr(METRICS, "_outside", {"held_out": HeldOut})
    assert summary(job) == "4 prompts of facts; 5 groups of set; 7 others."
    assert differences(TABLES["table4"], job)[-1] == "no others of dolly there"
    assert differences(TABLES["table4"], {"data": {"measured": 1000}}) == []


def test_every_option_has_a_help() -> None:
    for metric in ALL:
        for option in fields(metric.Options):
            assert option.metadata["help"], option.name
