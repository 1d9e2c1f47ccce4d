"""What a report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluation.judging.base import Outcome
from evaluation.metrics.columns import ANSWERS, MODEL, WIN, Column, Mark
from evaluation.metrics.statistics import Difference, Measurement


@dataclass(frozen=True)
class AnswerRow:
    """One model's answer to one prompt; judged against several opponents it is there once for each.

    Attributes:
        model, decoding: their names.
        finish_reason: "stop", or "length" where the limit cut it.
        tokens: its length.
        against: whom it was compared with, "truth" or a model's name; "" nobody.
        outcome: of that comparison; None without one. The answer is shown first in the first order of its verdicts,
            second in the second one.
        marks: what metrics say of the answer.
    """

    model: str
    decoding: str
    text: str
    finish_reason: str | None
    tokens: int
    against: str = ""
    outcome: Outcome | None = None
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class SampleRow:
    """One prompt, as a person wrote it, its ground truth and the answers to it."""

    id: str
    prompt: str
    truth: str
    answers: list[AnswerRow]


@dataclass(frozen=True)
class Results:
    """What one evaluation found, for its report.

    Attributes:
        job: what was evaluated, JSON-like. What it may hold is in schema.json; nothing of it is needed.
            `sweep["validation"]` is a list of measurements, as they are or as in report.json.
        environment: package versions and git commit (`data.manifest.environment`).
        measurements: every number, in the order that models and decodings are shown in.
        samples: what the page shows beside the numbers.
        notes: sentences that a reader must know.
        columns: what the measurements are, by name, in the order of reports.
        differences: between any two models, paired by prompt.
    """

    job: dict[str, Any]
    environment: dict[str, Any]
    measurements: list[Measurement]
    samples: list[SampleRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    columns: Mapping[str, Column] = field(default_factory=dict)
    differences: Sequence[Difference] = ()

    def column(self, measurement: Measurement) -> Column:
        """What a measurement is; an unknown one is shown by its name."""
        known = self.columns.get(measurement.metric)
        if known is not None:
            return known
        section = WIN if measurement.against else ANSWERS if measurement.decoding else MODEL
        return Column(measurement.metric, measurement.metric.replace("_", " "), "{:.4g}", "", section)

    def in_order(self, measurements: Sequence[Measurement]) -> list[str]:
        """Names of what was measured, in the order of reports; unknown ones last."""
        there = list(dict.fromkeys(m.metric for m in measurements))
        return [key for key in self.columns if key in there] + [key for key in there if key not in self.columns]
