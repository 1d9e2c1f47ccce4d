"""The sweep over alpha as points of a curve."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.metrics.base import TRUTH
from evaluation.metrics.statistics import Measurement
from evaluation.report.files import measurement

ENSEMBLE = re.compile(r"alpha-(\d+(?:\.\d+)?(?:e-\d+)?)")


@dataclass(frozen=True)
class Point:
    """What was measured of the ensemble of one alpha."""

    alpha: float
    measurement: Measurement


def validation(job: Mapping[str, Any]) -> list[Point]:
    """The ensembles on the prompts that alpha is chosen on, by rising alpha; win rates against the ground truth."""
    sweep = job.get("sweep") or {}
    found = [m if isinstance(m, Measurement) else measurement(m) for m in sweep.get("validation") or []]
    points = [Point(alpha, m) for m in found if (alpha := alpha_of(m.model)) is not None and m.against in ("", TRUTH)]
    return sorted(points, key=lambda point: point.alpha)


def alpha_of(model: str | float | None) -> float | None:
    """The alpha of an ensemble's name, "alpha-0.5", or the number itself; None for any other model."""
    if isinstance(model, int | float):
        return float(model)
    name = ENSEMBLE.fullmatch(model or "")
    return float(name[1]) if name else None


def proposal(job: Mapping[str, Any]) -> str:
    """A sentence on the proposed alpha, or on those that are not told apart; "" without a sweep or either."""
    sweep = job.get("sweep") or {}
    alpha, alike = alpha_of(sweep.get("proposed")), [f"{a:g}" for a in sweep.get("alike") or []]
    by = f" by {sweep['metric'].replace('_', ' ')}" if sweep.get("metric") else ""
    n = sweep.get("validation_prompts")
    on = f"{by} on the {f'{n:,} ' if n is not None else ''}validation prompts"
    if alpha is not None:
        others = f" Not distinguishable from it: alpha = {', '.join(alike)}." if alike else ""
        return f"Proposed: alpha = {alpha:g},{on}, which are in no other table.{others}"
    return f"No alpha is proposed: not distinguishable{on} are alpha = {', '.join(alike)}." if alike else ""
