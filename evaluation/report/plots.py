"""Plots in the style of the paper's Figure 1, the sweep over alpha, and rounds, as SVG files."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from evaluation.metrics.columns import Column
from evaluation.metrics.statistics import Estimate, Measurement
from evaluation.report.cells import INTERVAL
from evaluation.report.proposal import alpha_of, validation
from evaluation.report.results import Results
from evaluation.report.rounds import measured_rounds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 5.6  # inches, of one panel
ACROSS = 2
CURVE_HEIGHT = 3.6
# Ink, grid, then the colours of lines: on a light page, and on a dark one.
LIGHT = ("#1d2126", "#c9cdcf", "#1f6f5c", "#b9521a", "#2f62a3", "#84509f", "#7d6a14")
DARK = ("#e7e9ea", "#4a525a", "#6fcbb0", "#f0a36b", "#8ab4f0", "#c9a0e0", "#d8c65a")


@dataclass(frozen=True)
class Panel:
    """One pair of axes of a figure.

    Attributes:
        alt: what it shows, for who cannot see it.
        height: inches.
        draw: onto axes.
    """

    alt: str
    height: float
    draw: Callable[["Axes"], None]


def figure1(results: Results) -> list[Panel]:
    """What is drawn as in the paper's Figure 1, e.g. reverse KL and NLL; no panels without data.

    Points of each model with one standard error to either side.
    """
    panels = []
    for key, column in results.columns.items():
        found = [m for m in results.measurements if m.metric == key and math.isfinite(m.estimate.mean)]
        if column.figure and found:
            models = list(dict.fromkeys(m.model for m in found))
            better = f"; {column.spoken_better}" if column.spoken_better else ""
            panels.append(
                Panel(
                    f"{column.heading} of {listed(models)} with standard errors{better}.",
                    1.1 + 0.34 * len(models),
                    functools.partial(_draw_points, column=column, found=found, models=models),
                )
            )
    return panels


def alpha_curve(results: Results) -> list[Panel]:
    """What is drawn over alpha, e.g. win rate, and what alpha was chosen by; no panels without a sweep."""
    points = [point for point in validation(results.job) if math.isfinite(point.measurement.estimate.mean)]
    sweep = results.job.get("sweep") or {}
    panels = []
    for key, column in results.columns.items():
        found = [point for point in points if point.measurement.metric == key]
        if found and (column.curve or key == sweep.get("metric")):
            draw = functools.partial(
                _draw_curve,
                column=column,
                points=[(point.alpha, point.measurement) for point in found],
                over="over alpha, validation prompts",
                axis="alpha, 0: CPO, 1: MLE",
                proposed=alpha_of(sweep.get("proposed")),
            )
            alt = f"{column.heading} of the ensembles over alpha, on the validation prompts."
            panels.append(Panel(alt, CURVE_HEIGHT, draw))
    return panels


def rounds_curve(results: Results) -> list[Panel]:
    """What models are compared by, e.g. reverse KL, over rounds; no panels without models of two rounds."""
    points = [(number, m) for number, m in measured_rounds(results.measurements) if math.isfinite(m.estimate.mean)]
    panels = []
    for key, column in results.columns.items():
        found = [(number, m) for number, m in points if m.metric == key]
        if len({number for number, _ in found}) > 1 and (column.figure or column.curve or column.criterion):
            draw = functools.partial(
                _draw_curve, column=column, points=found, over="over rounds", axis="round, 0: the first reference"
            )
            better = f"; {column.spoken_better}" if column.spoken_better else ""
            panels.append(Panel(f"{column.heading} over rounds{better}.", CURVE_HEIGHT, draw))
    return panels


def svg(panels: Sequence[Panel], *, paper: str = "none") -> bytes:
    """Panels, ACROSS in a row, as an SVG file: the same ones give the same bytes, whatever the user's matplotlibrc.

    Args:
        paper: colour of the background.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    ink, grid, *colours = LIGHT
    style: Any = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), ink),
        "axes.edgecolor": grid,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "axes.prop_cycle": cycler(color=colours),
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "font.size": 10,
        "text.parse_math": False,  # "$" in a model's name
        "svg.hashsalt": "evaluation",
    }
    with matplotlib.rc_context(), BytesIO() as image:
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        across = min(len(panels), ACROSS)
        heights = [max(panel.height for panel in panels[i : i + across]) for i in range(0, len(panels), across)]
        drawing = Figure(figsize=(WIDTH * across, sum(heights)), layout="constrained", facecolor=paper)
        places = drawing.subplots(len(heights), across, squeeze=False, height_ratios=heights).flat
        for axes, panel in zip_longest(places, panels):
            axes.set_facecolor("none")
            if panel is None:
                axes.set_axis_off()
            else:
                panel.draw(axes)
        drawing.savefig(image, format="svg", backend="svg", metadata={"Date": None})
        return image.getvalue()


def for_dark_page(image: bytes) -> bytes:
    """A drawn SVG file in colours for a dark page: drawing it again takes longer."""
    for light, dark in zip(LIGHT, DARK, strict=True):
        image = image.replace(light.encode(), dark.encode())
    return image


def _draw_points(axes: "Axes", column: Column, found: Sequence[Measurement], models: Sequence[str]) -> None:
    errors = [0.0 if math.isnan(m.estimate.standard_error) else m.estimate.standard_error for m in found]
    rows = [(m.model, m.decoding, m.estimate.mean, e, e) for m, e in zip(found, errors, strict=True)]
    axis = ", ".join(filter(None, (column.unit, column.spoken_better)))
    axis = "; ".join(filter(None, (axis, "bars: one standard error")))
    draw_rows(axes, rows, models, title=column.heading, axis=axis)


def draw_rows(
    axes: "Axes",
    rows: Sequence[tuple[str, str, float, float, float]],
    models: Sequence[str],
    *,
    title: str,
    axis: str,
) -> None:
    """A line per model, the first on top; decodings of one model side by side, each with its colour.

    Args:
        rows: model, decoding, value, and by how much its bar reaches below and above it.
        title: to which the decoding is added where there is one alone.
        axis: what the values are, in words.
    """
    decodings = list(dict.fromkeys(decoding for _, decoding, *_ in rows))
    step = 0.6 / max(len(decodings), 2)
    for index, decoding in enumerate(decodings):
        names, _, means, below, above = zip(*(row for row in rows if row[1] == decoding), strict=True)
        places = [models.index(name) + (index - (len(decodings) - 1) / 2) * step for name in names]
        axes.errorbar(means, places, xerr=(below, above), fmt="o", markersize=5, capsize=3, label=_printable(decoding))
    only = decodings[0] if len(decodings) == 1 else ""
    axes.set(
        title=", ".join(filter(None, (_printable(title), _printable(only)))),
        xlabel=axis,
        ylim=(len(models) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(models)), [_printable(name) for name in models])
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    if len(decodings) > 1:
        axes.legend(fontsize=9)


def _draw_curve(
    axes: "Axes",
    column: Column,
    points: Sequence[tuple[float, Measurement]],
    *,
    over: str,
    axis: str,
    proposed: float | None = None,
) -> None:
    """A line per decoding with a band: the interval where there is one, else one standard error to either side.

    Args:
        points: places along the axis with what was measured there, in the axis's order.
        over: end of the title.
        axis: what it is, in words.
    """
    scale = 100 if column.percent else 1
    decodings = list(dict.fromkeys(m.decoding for _, m in points))
    for index, decoding in enumerate(decodings):
        ours = [(place, m.estimate) for place, m in points if m.decoding == decoding]
        places = [place for place, _ in ours]
        low, high = zip(*(_band(estimate) for _, estimate in ours), strict=True)
        means = [estimate.mean * scale for _, estimate in ours]
        axes.plot(places, means, "o-", color=f"C{index}", markersize=5, label=_printable(decoding))
        axes.fill_between(
            places, [v * scale for v in low], [v * scale for v in high], color=f"C{index}", alpha=0.18, linewidth=0
        )
    if column.chance is not None:
        axes.axhline(column.chance * scale, color=axes.spines["left"].get_edgecolor(), linewidth=0.8, zorder=0)
    if proposed is not None:
        axes.axvline(proposed, linestyle=":", color="grey", label=f"proposed, {proposed:g}")
    if all(isinstance(place, int) for place, _ in points):
        axes.set_xticks(sorted({place for place, _ in points}))
    bands = dict.fromkeys(INTERVAL if m.estimate.interval else "one standard error" for _, m in points)
    axes.set(
        title=f"{column.heading} {over}",
        xlabel=f"{axis}; band: {' or '.join(bands)}",
        ylabel=column.heading + (" (%)" if column.percent else ""),
    )
    axes.grid()
    axes.legend(fontsize=9)


def _band(estimate: Estimate) -> tuple[float, float]:
    if estimate.interval is not None:
        return estimate.interval
    error = 0.0 if math.isnan(estimate.standard_error) else estimate.standard_error
    return estimate.mean - error, estimate.mean + error


def _printable(name: str) -> str:
    """A name on one line; what a font has no sign for would be a box."""
    return "".join(sign if sign.isprintable() else " " for sign in name)


def listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
