"""A forest plot: differences from the baseline with their intervals, a panel for each number that was measured."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.gaps import bounds
from evaluation.metrics.columns import Column
from evaluation.metrics.statistics import Estimate
from evaluation.report.cells import INTERVAL
from evaluation.report.plots import Panel, draw_rows, listed
from evaluation.report.results import Results
from evaluation.report.tables import gaps_of, opponent, unique

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Gap:
    """By how much a model exceeds the baseline."""

    model: str
    decoding: str
    estimate: Estimate


def forest(results: Results) -> list[Panel]:
    """Panels in the order of the columns; none without a baseline or another model."""
    baseline = str(results.job.get("baseline") or "")
    gaps, panels = gaps_of(results), []
    for key in results.in_order(results.measurements):
        for against in unique(m.against for m in results.measurements if m.metric == key):
            measured = [m for m in results.measurements if (m.metric, m.against) == (key, against)]
            column = results.column(measured[0])
            if column.is_difference or baseline not in {m.model for m in measured}:
                continue
            known = [(m, gaps.paired(m, baseline)) for m in measured if m.model != baseline]
            found = [Gap(m.model, m.decoding, gap) for m, gap in known if gap and math.isfinite(gap.mean)]
            if found:
                title = f"{column.heading}{f' against {opponent(against)}' if against else ''} minus {baseline}"
                panels.append(_panel(title, column, found))
    return panels


def _panel(title: str, column: Column, found: Sequence[Gap]) -> Panel:
    models = unique(gap.model for gap in found)
    better = f"; {column.spoken_better}" if column.spoken_better else ""
    return Panel(
        f"{title}, of {listed(models)}, with {INTERVAL}s{better}.",
        1.1 + 0.34 * len(models) * max(1.0, len(unique(gap.decoding for gap in found)) / 2),
        functools.partial(_draw, title=title, column=column, found=found, models=models),
    )


def _draw(axes: "Axes", title: str, column: Column, found: Sequence[Gap], models: Sequence[str]) -> None:
    scale = 100 if column.percent else 1
    rows = [(gap.model, gap.decoding, gap.estimate.mean * scale, *_arms(gap.estimate, scale)) for gap in found]
    unit = "percentage points" if column.percent else column.unit
    axis = ", ".join(filter(None, (unit, column.spoken_better)))
    draw_rows(axes, rows, models, title=title, axis="; ".join(filter(None, (axis, f"bars: {INTERVAL}"))))
    axes.axvline(0.0, color="grey", linewidth=0.8, zorder=0)  # the baseline


def _arms(gap: Estimate, scale: float) -> tuple[float, float]:
    """By how much the interval reaches to either side of the mean."""
    low, high = bounds(gap)
    return (gap.mean - low) * scale, (high - gap.mean) * scale
