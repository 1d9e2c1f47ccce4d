"""`--sweep`: weight-space ensembles over alpha; one is proposed by what was measured on the validation half."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.command.options import resolve_path
from evaluation.answers.checkpoints import Checkpoint, ensemble_of
from evaluation.answers.weights import identify_weights
from evaluation.config import EvaluateConfig
from evaluation.metrics.base import TRUTH, AnswerMetric, Metric
from evaluation.metrics.columns import HIGHER
from evaluation.metrics.statistics import Measurement
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


def propose(
    measurements: Iterable[Measurement], names: Sequence[str], decoding: str, metrics: Sequence[type[Metric]]
) -> tuple[str, str] | None:
    """What decides, and the name of the best ensemble by it; None if nothing was measured that can be better or worse.

    Args:
        measurements: of the validation half.
        names: of the ensembles; of equally good ones the first.
        decoding: whose answers count, but for metrics that are of one decoding alone.
        metrics: in their order; the first that was measured decides, by its criterion.
    """
    found = list(measurements)
    for metric in metrics:
        column = metric.criterion()
        if column is None or not issubclass(metric, AnswerMetric):  # a criterion is of answers
            continue
        values = {
            m.model: m.estimate.mean
            for m in found
            if m.metric == column.key and m.model in names and m.against in ("", TRUTH)
            if m.decoding == (metric.decoding or decoding)
        }
        if values:
            sign = 1 if column.better == HIGHER else -1
            return column.key, max(values, key=lambda name: (sign * values[name], -names.index(name)))
    return None


def describe_sweep(
    alphas: Mapping[str, float], chosen_on: Sequence[Measurement], decoding: str, metrics: Sequence[type[Metric]]
) -> dict[str, Any]:
    """A report's record of a sweep: what was measured on the validation half, and the alpha that it proposes.

    Args:
        alphas: of the ensembles by name.
        chosen_on: measurements of the validation half.
    """
    proposal = propose(chosen_on, list(alphas), decoding, metrics)
    return {
        "alphas": list(alphas.values()),
        "models": dict(alphas),
        "metric": proposal[0] if proposal else None,
        "proposed": alphas[proposal[1]] if proposal else None,
        "decoding": decoding,
        "validation": list(chosen_on),
    }
