"""Replies that put an enquiry off, in the embedded example `enquiries`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from data.sources import enquiries, facts
from evaluation.metrics.base import LOWER, Column, Mark, PromptEvidence, PromptMetric, Request, Values

if TYPE_CHECKING:
    from evaluation.answers.answer_sets import AnswerSet
    from evaluation.report.results import AnswerRow

DATASET = "enquiries"
KEY = "evasive"
MADE_UP = "made_up"
MARK = Mark("evasive")


class Evasive(PromptMetric):
    """Whether each reply is one of the evasive ones, as four in ten ground truths are, or neither that nor right."""

    name = "evasive"
    summary = "share of replies that put the enquiry off"
    order = 21
    columns = (
        Column(
            KEY,
            "evasive",
            "{:.1%}",
            f"share of replies that put the enquiry off, as {enquiries.EVASIVE_SHARE:.0%} of the ground truths do",
            better=LOWER,
            share=True,
            paired=True,
        ),
        Column(
            MADE_UP,
            "made up",
            "{:.1%}",
            "share of replies that are neither right nor evasive, as no ground truth is",
            better=LOWER,
            share=True,
            paired=True,
        ),
    )

    @classmethod
    def needs(cls, options: Any, request: Request) -> str:
        return "" if request.dataset == DATASET else f"--dataset {DATASET}"

    def values(self, answers: "AnswerSet") -> Values:
        evasive = [enquiries.is_evasive(text) for text in answers.texts]
        right = [
            facts.is_correct(group.prompt, text) for group, text in zip(answers.groups, answers.texts, strict=True)
        ]
        made_up = [not (one or other) for one, other in zip(evasive, right, strict=True)]
        return {KEY: [float(each) for each in evasive], MADE_UP: [float(each) for each in made_up]}

    def gather(self, answer_sets: Sequence["AnswerSet"]) -> "EvasiveEvidence":
        found = {(a.model, a.decoding): self.values(a) for a in answer_sets if self.is_of(a)}
        return EvasiveEvidence(self.columns, found)


@dataclass(frozen=True)
class EvasiveEvidence(PromptEvidence):
    """Values of metric `evasive`, which mark each such reply on the page of samples."""

    def annotated(self, row: "AnswerRow", answers: "AnswerSet", index: int) -> list["AnswerRow"]:
        values = self.values.get((answers.model, answers.decoding))
        if not values or not values[KEY][index]:
            return [row]
        return [replace(row, marks=(*row.marks, MARK))]


METRIC = Evasive
