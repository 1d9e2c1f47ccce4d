"""Plots in the style of the paper's Figure 1, and the sweep over alpha, as SVG files."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from evaluation.metrics.statistics import Estimate, Measurement
from evaluation.report.columns import COLUMNS, INTERVAL
from evaluation.report.proposal import CURVES, Point, alpha_of, validation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 5.6  # inches, of one panel
FIGURE_1 = ("reverse_kl", "nll")
# Ink, grid, then the colours of lines: on a light page, and on a dark one.
LIGHT = ("#1d2126", "#c9cdcf", "#1f6f5c", "#b9521a", "#2f62a3", "#84509f", "#7d6a14")
DARK = ("#e7e9ea", "#4a525a", "#6fcbb0", "#f0a36b", "#8ab4f0", "#c9a0e0", "#d8c65a")


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        alt: what it shows, for who cannot see it.
        height: inches.
        draw: onto axes.
    """

    alt: str
    height: float
    draw: Callable[["Axes"], None]


def figure1(measurements: Sequence[Measurement]) -> list[Panel]:
    """Reverse KL and NLL of each model: points with one standard error to either side; no panels without data."""
    panels = []
    for metric in FIGURE_1:
        found = [m for m in measurements if m.metric == metric and math.isfinite(m.estimate.mean)]
        if found:
            models = list(dict.fromkeys(m.model for m in found))
            panels.append(
                Panel(
                    f"{COLUMNS[metric].heading} of {_listed(models)} with standard errors; less is better.",
                    1.1 + 0.34 * len(models),
                    lambda axes, metric=metric, found=found, models=models: _draw_points(axes, metric, found, models),
                )
            )
    return panels


def alpha_curve(job: Mapping[str, Any]) -> list[Panel]:
    """Win rate and reverse KL over alpha, or else the metric that alpha was chosen by; no panels without a sweep."""
    points = [point for point in validation(job) if math.isfinite(point.measurement.estimate.mean)]
    there = {point.measurement.metric for point in points}
    chosen = (job.get("sweep") or {}).get("metric")
    proposed = alpha_of((job.get("sweep") or {}).get("proposed"))
    return [
        Panel(
            f"{COLUMNS[metric].heading} of the ensembles over alpha, on the validation prompts.",
            3.6,
            lambda axes, metric=metric: _draw_curve(
                axes, metric, [point for point in points if point.measurement.metric == metric], proposed
            ),
        )
        for metric in CURVES
        if metric in there and metric in ("win_rate", "reverse_kl", chosen)
    ]


def svg(panels: Sequence[Panel], *, paper: str = "none") -> bytes:
    """Panels beside each other as an SVG file: the same ones give the same bytes, whatever the user's matplotlibrc.

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
        height = max(panel.height for panel in panels)
        drawing = Figure(figsize=(WIDTH * len(panels), height), layout="constrained", facecolor=paper)
        for axes, panel in zip(drawing.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            axes.set_facecolor("none")
            panel.draw(axes)
        drawing.savefig(image, format="svg", backend="svg", metadata={"Date": None})
        return image.getvalue()


def for_dark_page(image: bytes) -> bytes:
    """The same file in colours for a dark page: drawing it again takes longer."""
    for light, dark in zip(LIGHT, DARK, strict=True):
        image = image.replace(light.encode(), dark.encode())
    return image


def _draw_points(axes: "Axes", metric: str, found: Sequence[Measurement], models: Sequence[str]) -> None:
    """A line per model, the first on top; decodings of one model side by side, each with its colour."""
    decodings = list(dict.fromkeys(m.decoding for m in found))
    step = 0.6 / max(len(decodings), 2)
    for index, decoding in enumerate(decodings):
        ours = [m for m in found if m.decoding == decoding]
        places = [models.index(m.model) + (index - (len(decodings) - 1) / 2) * step for m in ours]
        errors = [0.0 if math.isnan(m.estimate.standard_error) else m.estimate.standard_error for m in ours]
        means = [m.estimate.mean for m in ours]
        axes.errorbar(means, places, xerr=errors, fmt="o", markersize=5, capsize=3, label=_printable(decoding))
    unit = "nats per token" if metric == "nll" else "nats"
    axes.set(
        title=COLUMNS[metric].heading + (f", {_printable(decodings[0])}" if len(decodings) == 1 else ""),
        xlabel=f"{unit}, less is better; bars: one standard error",
        ylim=(len(models) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(models)), [_printable(name) for name in models])
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    if len(decodings) > 1:
        axes.legend(fontsize=9)


def _draw_curve(axes: "Axes", metric: str, points: Sequence[Point], proposed: float | None) -> None:
    """A line per decoding with a band: the interval where there is one, else one standard error to either side."""
    percent = COLUMNS[metric].form.endswith("%}")
    scale = 100 if percent else 1
    decodings = list(dict.fromkeys(point.measurement.decoding for point in points))
    for index, decoding in enumerate(decodings):
        ours = [point for point in points if point.measurement.decoding == decoding]
        alphas = [point.alpha for point in ours]
        low, high = zip(*(_band(point.measurement.estimate) for point in ours), strict=True)
        means = [point.measurement.estimate.mean * scale for point in ours]
        axes.plot(alphas, means, "o-", color=f"C{index}", markersize=5, label=_printable(decoding))
        axes.fill_between(
            alphas, [v * scale for v in low], [v * scale for v in high], color=f"C{index}", alpha=0.18, linewidth=0
        )
    if metric == "win_rate":
        axes.axhline(50, color=axes.spines["left"].get_edgecolor(), linewidth=0.8, zorder=0)
    if proposed is not None:
        axes.axvline(proposed, linestyle=":", color="grey", label=f"proposed, {proposed:g}")
    bands = dict.fromkeys(INTERVAL if point.measurement.estimate.interval else "one standard error" for point in points)
    axes.set(
        title=f"{COLUMNS[metric].heading} over alpha, validation prompts",
        xlabel=f"alpha, 0: CPO, 1: MLE; band: {' or '.join(bands)}",
        ylabel=COLUMNS[metric].heading + (" (%)" if percent else ""),
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


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
