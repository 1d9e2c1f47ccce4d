"""`--sweep`: weight-space ensembles over alpha; one half of the prompts to choose an alpha on, one to report on."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data.command.options import resolve_path
from evaluation.answers.cache import Store
from evaluation.answers.weights import identify_weights
from evaluation.config import TRUTH, EvaluateConfig
from evaluation.metrics.statistics import Measurement

# By what alpha is proposed: the first that was measured; whether more is better.
CRITERIA = {"win_rate": True, "correct": True, "reverse_kl": False, "nll": False, "similarity": True, "mauve": True}


def add_ensembles(config: EvaluateConfig, store: Store) -> dict[str, str]:
    """The ensembles of a sweep, name -> path OUT/ensembles/alpha-X; written where they are missing.

    Args:
        store: remembers the hashes of weights.
    """
    alphas = config.alphas()
    if not alphas:
        return {}
    from trainer.ensemble.ensembles import directory_name, write_ensembles

    assert config.mle is not None  # EvaluateConfig.alphas
    assert config.cpo is not None
    output = Path(resolve_path(config.out)) / "ensembles"

    def hash_weights(path: str) -> str:
        return identify_weights(path, store)["weights_sha256"]

    paths = write_ensembles(config.mle, config.cpo, alphas, output, hash_weights)
    return dict(zip(map(directory_name, alphas), map(str, paths), strict=True))


def halves(ids: Sequence[str]) -> tuple[list[int], list[int]]:
    """Indices of the test half and of the validation half of prompts, by a hash of their ids alone."""
    chooses = [hashlib.sha256(i.encode()).digest()[0] % 2 == 1 for i in ids]
    return [i for i, v in enumerate(chooses) if not v], [i for i, v in enumerate(chooses) if v]


def propose(measurements: Iterable[Measurement], names: Sequence[str], decoding: str) -> tuple[str, str] | None:
    """The metric that decides and the name of the best ensemble by it; None if none of CRITERIA was measured.

    Args:
        measurements: of the validation half.
        names: of the ensembles; of equally good ones the first.
        decoding: whose answers count (of reverse_kl: those of `sample`).
    """
    found = list(measurements)
    for metric, more in CRITERIA.items():
        values = {
            m.model: m.estimate.mean
            for m in found
            if m.metric == metric and m.model in names and m.against in ("", TRUTH)
            if m.decoding == ("sample" if metric == "reverse_kl" else decoding)
        }
        if values:
            best = max(values, key=lambda name: (values[name] if more else -values[name], -names.index(name)))
            return metric, best
    return None


def describe_sweep(
    alphas: Sequence[float], names: Sequence[str], chosen_on: Sequence[Measurement], decoding: str
) -> dict[str, Any]:
    """For the report: what was measured on the validation half, and the alpha that it proposes.

    Args:
        names: of the ensembles, one per alpha.
        chosen_on: measurements of the validation half.
    """
    proposal = propose(chosen_on, names, decoding)
    return {
        "alphas": list(alphas),
        "models": dict(zip(names, alphas, strict=True)),
        "metric": proposal[0] if proposal else None,
        "proposed": alphas[names.index(proposal[1])] if proposal else None,
        "decoding": decoding,
        "validation": list(chosen_on),
    }
