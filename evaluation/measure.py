"""Measurements of answers: what costs is found out for all prompts once, the rest for any part of them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.answers.answer_sets import AnswerSet
from evaluation.answers.checkpoints import Checkpoint
from evaluation.metrics.base import (
    SPENT,
    AnswerMetric,
    CheckpointMetric,
    Evidence,
    Metric,
    Values,
    require_own,
)
from evaluation.metrics.statistics import Difference, Measurement
from evaluation.on_demand import OnDemand
from evaluation.subject import Part
from negatives_gen.models.loading import NO_CODE, load_scorer


@dataclass(frozen=True)
class Gathered:
    """The evidence of all metrics.

    Attributes:
        answer_sets: that it is of.
        of_checkpoints: of what needs no answers.
        of_answers: of the answers.
    """

    answer_sets: tuple[AnswerSet, ...]
    of_checkpoints: tuple[Evidence, ...]
    of_answers: tuple[Evidence, ...]

    def measurements(self, part: Part, baseline: str) -> list[Measurement]:
        """Measurements of some of the prompts: of the checkpoints, then of each answer set in turn."""
        return [*_measure(self.of_checkpoints, part, baseline), *self.measurements_of_answers(part, baseline)]

    def measurements_of_answers(self, part: Part, baseline: str = "") -> list[Measurement]:
        """Measurements of some of the prompts, without what needs no answers."""
        return _measure(self.of_answers, part, baseline, self.answer_sets)

    def paired(self, part: Part) -> list[Difference]:
        """Differences between any two models on some of the prompts, see `Evidence.paired`."""
        return [found for evidence in (*self.of_answers, *self.of_checkpoints) for found in evidence.paired(part)]

    def notes(self, part: Part) -> list[str]:
        """What a reader must know beside the numbers; each sentence once."""
        said = [note for evidence in (*self.of_answers, *self.of_checkpoints) for note in evidence.notes(part)]
        return list(dict.fromkeys(said))

    def spent(self) -> dict[str, Any]:
        """What the evidence took, for the record."""
        return {key + SPENT: value for evidence in self.of_answers for key, value in evidence.spent().items()}


def gather(metrics: Sequence[Metric], checkpoints: Sequence[Checkpoint], answer_sets: Sequence[AnswerSet]) -> Gathered:
    """Find out what the metrics follow from, for all prompts, with one kind of model in memory at a time.

    Raises:
        UserError: a model cannot be loaded, or a judge cannot be asked. What was found out before is in the store.
    """
    of_checkpoints = _gather_of_checkpoints([m for m in metrics if isinstance(m, CheckpointMetric)], checkpoints)
    found: dict[Metric, Evidence] = {}
    # The first in their own order may be paid for: it comes last, when all else has gone well.
    for metric in sorted(metrics, key=lambda metric: metric.order, reverse=True):
        if isinstance(metric, AnswerMetric):
            found[metric] = metric.gather(answer_sets)
            metric.drop()
            require_own(type(metric), [key + SPENT for key in found[metric].spent()])
    of_answers = [found[metric] for metric in metrics if metric in found]
    return Gathered(tuple(answer_sets), tuple(of_checkpoints), tuple(of_answers))


def _gather_of_checkpoints(metrics: Sequence[CheckpointMetric], checkpoints: Sequence[Checkpoint]) -> list[Evidence]:
    values: list[dict[tuple[str, str], Values]] = [{} for _ in metrics]
    for checkpoint in checkpoints:
        with OnDemand(functools.partial(_load_scorer, checkpoint)) as scorer:
            for metric, found in zip(metrics, values, strict=True):
                found[checkpoint.name, ""] = metric.values(checkpoint, scorer)
    return [metric.evidence(found, checkpoints) for metric, found in zip(metrics, values, strict=True)]


def _load_scorer(checkpoint: Checkpoint, dtype: str) -> Any:
    return load_scorer(checkpoint.path, dtype=dtype, named=f"model '{checkpoint.name}'", custom_code=NO_CODE)


def _measure(
    gathered: Sequence[Evidence], part: Part, baseline: str, answer_sets: Sequence[AnswerSet] = ()
) -> list[Measurement]:
    found = [m for evidence in gathered for m in evidence.measurements(part, baseline)]
    models = list(dict.fromkeys(m.model for m in found))
    order = {(a.model, a.decoding): number for number, a in enumerate(answer_sets)}
    return sorted(found, key=lambda m: order.get((m.model, m.decoding), models.index(m.model)))
