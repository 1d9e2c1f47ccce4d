"""Answers that code finds right, in the embedded world of facts and enquiries."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from data.sources import facts
from evaluation.metrics.base import HIGHER, Column, Mark, PromptEvidence, PromptMetric, Request, Values

if TYPE_CHECKING:
    from evaluation.answers.answer_sets import AnswerSet
    from evaluation.report.results import AnswerRow

DATASETS = ("facts", "enquiries")
KEY = "correct"
MARKS = (Mark("wrong", "bad"), Mark("correct", "good"))


class Correct(PromptMetric):
    """Whether code finds each answer right."""

    name = "correct"
    summary = "share of answers that code finds right"
    order = 20
    columns = (
        Column(
            KEY,
            "correct answers",
            "{:.1%}",
            "share of answers that code finds right",
            better=HIGHER,
            share=True,
            paired=True,
        ),
    )

    @classmethod
    def needs(cls, options: Any, request: Request) -> str:
        return "" if request.dataset in DATASETS else f"--dataset {' or '.join(DATASETS)}"

    def values(self, answers: "AnswerSet") -> Values:
        pairs = zip(answers.groups, answers.texts, strict=True)
        return {KEY: [float(facts.is_correct(group.prompt, text)) for group, text in pairs]}

    def gather(self, answer_sets: Sequence["AnswerSet"]) -> "CorrectEvidence":
        found = {(a.model, a.decoding): self.values(a) for a in answer_sets if self.is_of(a)}
        return CorrectEvidence(self.columns, found)


@dataclass(frozen=True)
class CorrectEvidence(PromptEvidence):
    """Values of metric `correct`, which mark each answer on the page of samples as right or wrong."""

    def annotated(self, row: "AnswerRow", answers: "AnswerSet", index: int) -> list["AnswerRow"]:
        values = self.values.get((answers.model, answers.decoding))
        if not values:
            return [row]
        return [replace(row, marks=(*row.marks, MARKS[bool(values[KEY][index])]))]


METRIC = Correct
