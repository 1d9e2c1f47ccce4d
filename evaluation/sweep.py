"""`--sweep`: weight-space ensembles over alpha; one is proposed by what was measured on the validation half."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.command.options import resolve_path
from evaluation.answers.checkpoints import Checkpoint, ensemble_of
from evaluation.answers.weights import identify_weights
from evaluation.config import EvaluateConfig
from evaluation.gaps import Gaps, ranked
from evaluation.metrics.base import TRUTH, AnswerMetric, Metric
from evaluation.metrics.columns import HIGHER
from evaluation.metrics.statistics import Difference, Measurement
from evaluation.subject import Evaluation


def make_ensembles(config: EvaluateConfig, evaluation: Evaluation) -> list[Checkpoint]:
    """The ensembles of a sweep, OUT/ensembles/alpha-X; written where they are missing. None without a sweep."""
    alphas = config.alphas()
    if not alphas:
        return []
    from trainer.ensemble.ensembles import directory_name, write_ensembles

    assert config.mle is not None  # EvaluateConfig.alphas
    assert config.cpo is not None
    assert evaluation.mixed is not None
    store, mixed = evaluation.store, evaluation.mixed

    def hash_weights(path: str) -> str:
        return identify_weights(path, store)["weights_sha256"]

    output = Path(resolve_path(config.out)) / "ensembles"
    paths = write_ensembles(config.mle, config.cpo, alphas, output, hash_weights)
    return [
        ensemble_of(mixed, directory_name(alpha), str(path), store) for alpha, path in zip(alphas, paths, strict=True)
    ]


@dataclass(frozen=True)
class Proposal:
    """What a sweep proposes.

    Attributes:
        metric: the number that decides.
        best: name of the best ensemble by it; None where another is as good, or none is told apart from the best one.
        alike: names of those that are not told apart: from the best one, or, without one, from each other.
    """

    metric: str
    best: str | None
    alike: tuple[str, ...] = ()


def propose(
    measurements: Iterable[Measurement],
    differences: Iterable[Difference],
    names: Sequence[str],
    decoding: str,
    metrics: Sequence[type[Metric]],
) -> Proposal | None:
    """What is best of a sweep; None if nothing was measured that can be better or worse.

    Args:
        measurements, differences: of the validation half.
        names: of the ensembles.
        decoding: whose answers count, but for metrics that are of one decoding alone.
        metrics: what was asked for first, first; the first that was measured decides, by its criterion.
    """
    found = list(measurements)
    gaps = Gaps(found, differences)
    for metric in metrics:
        column = metric.criterion()
        if column is None or not issubclass(metric, AnswerMetric):  # a criterion is of answers
            continue
        ours = [
            m
            for m in found
            if m.metric == column.key and m.model in names and m.against in ("", TRUTH)
            if m.decoding == (metric.decoding or decoding)
        ]
        ranking = ranked(ours, gaps, higher=column.better == HIGHER)
        if not ranking.ordered:
            continue
        best, *others = ranking.ordered
        alike = sorted((m.model for m in ranking.alike), key=names.index)
        tie = any(m.estimate.mean == best.estimate.mean for m in others)
        if tie or (others and len(alike) == len(others)):
            return Proposal(column.key, None, tuple(sorted([best.model, *alike], key=names.index)))
        return Proposal(column.key, best.model, tuple(alike))
    return None


def describe_sweep(
    alphas: Mapping[str, float],
    chosen_on: Sequence[Measurement],
    differences: Sequence[Difference],
    decoding: str,
    metrics: Sequence[type[Metric]],
) -> dict[str, Any]:
    """A report's record of a sweep: what was measured on the validation half, and the alpha that it proposes, if any.

    Args:
        alphas: of the ensembles by name.
        chosen_on, differences: of the validation half.
    """
    proposal = propose(chosen_on, differences, list(alphas), decoding, metrics)
    return {
        "alphas": list(alphas.values()),
        "models": dict(alphas),
        "metric": proposal.metric if proposal else None,
        "proposed": alphas[proposal.best] if proposal and proposal.best else None,
        "alike": [alphas[name] for name in proposal.alike] if proposal else [],
        "decoding": decoding,
        "validation": list(chosen_on),
    }
