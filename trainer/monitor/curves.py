"""The curves of a training run, from transformers' log history: what training.png shows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from trainer.objectives.base import START, TERM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

LogHistory = Sequence[Mapping[str, Any]]

HELD_OUT = "eval_"
MARGIN = "rewards/margin"
CHANGE = "logps/ground_truth_change"
BOUND = "contrast/kl_bound"
CANDIDATES = "contrast/effective_candidates"
SPREAD = "contrast/spread"
PER_TOKEN = "contrast/h_per_token"
DECIDED = "contrast/decided"
REPEATS = "contrast/repeats"
OVER_START = "contrast/loss_over_start"
SINGLE_POINTS = 40  # up to so many points each is marked: a single one would make no line at all
FEW_POINTS = 10  # up to so many by a large mark
DECADE = 10.0
NEAR_ZERO = 1000.0  # so much less than the largest value is drawn as next to nothing
LEGEND_ROW = 0.07  # of a panel's height
PANEL_WIDTH, PANEL_HEIGHT = 5.5, 11 / 3  # inches


def points(log_history: LogHistory, key: str) -> list[tuple[int, float]]:
    """(step, value) of each log that holds the key, in order; what is no finite number becomes nan, a gap."""
    found = [(logs["step"], logs[key]) for logs in log_history if key in logs]
    return [(step, float(v) if v is not None and math.isfinite(v) else math.nan) for step, v in found]


def by_strategy(log_history: LogHistory, key: str) -> dict[str, str]:
    """Name of a line -> key of the logs: one per strategy where there are several, else the key alone."""
    names = {name.removeprefix(HELD_OUT) for logs in log_history for name in logs}
    strategies = sorted(name.removeprefix(key + "/") for name in names if name.startswith(key + "/"))
    return {name: f"{key}/{name}" for name in strategies} if len(strategies) > 1 else {"": key}


def losses(log_history: LogHistory) -> dict[str, str]:
    """Name of a line -> key of the logs: the loss, and what is known of its terms, starts and bound on KL(P || A)."""
    held = sorted({name for logs in log_history for name in logs})
    found = {"": "loss"}
    found |= {name.removeprefix(TERM): name for name in held if name.startswith(TERM)}
    found |= {f"{name.removeprefix(START)} at the start": name for name in held if name.startswith(START)}
    return {**found, "bound on KL(P || A)": BOUND} if BOUND in held else found


def loss_and_start(logs: Mapping[str, Any]) -> tuple[str, str] | None:
    """Under which names a log holds the loss, or that term of it, whose start is known, and its start; else None."""
    start = next((name for name in logs if name.startswith(START)), None)
    if start is None:
        return None
    term = f"{TERM}{start.removeprefix(START)}"
    return term if term in logs else "loss", start


def held_out_values(logs: Mapping[str, Any]) -> dict[str, Any]:
    """What a log of held-out groups holds, under the names of train groups; {} of another log."""
    if f"{HELD_OUT}loss" not in logs:
        return {}
    return {name.removeprefix(HELD_OUT): value for name, value in logs.items() if name.startswith(HELD_OUT)}


@dataclass(frozen=True)
class Panel:
    """What one panel shows.

    Attributes:
        unit: of its vertical axis.
        keys: name of a line -> key of the logs; its train and held-out values have one colour.
        zero: a line at 0 is drawn, where the policy is the reference.
        decades: the axis goes by decades where values lie in several.
    """

    title: str
    unit: str
    keys: Mapping[str, str]
    zero: bool = False
    decades: bool = False

    def values(self, log_history: LogHistory) -> list[float]:
        """All that it shows."""
        return [v for key in self.keys.values() for p in ("", HELD_OUT) for _, v in points(log_history, p + key)]


def panels(log_history: LogHistory) -> list[Panel]:
    """The panels that a run has something to show in; of next-token prediction that is the loss alone.

    All: loss beside its start, ground truth against the reference, margin, ranking, what competes, how far h is.
    """
    known = (
        Panel("Loss", "loss (nats)", losses(log_history)),
        Panel("Ground truth, policy minus reference", "log-probability (nats)", {"": CHANGE}, zero=True),
        Panel(
            "Margin, h of ground truth minus mean h of negatives",
            "h (beta x nats)",
            by_strategy(log_history, MARGIN),
            zero=True,
        ),
        Panel(
            "Ranking",
            "share of groups; tau, -1 to 1",
            {"top-1 accuracy": "rewards/top1", "Kendall's tau": "rewards/kendall_tau", "decided": DECIDED},
        ),
        Panel(
            "What competes",
            "candidates; times shown",
            {"effective candidates": CANDIDATES, "repeats of negatives": REPEATS},
        ),
        Panel(
            "Distance from the reference",
            "h (beta x nats)",
            {"spread in a group": SPREAD, "per token": PER_TOKEN},
            decades=True,
        ),
    )
    return [panel for panel in known if panel.values(log_history)]


def figure(log_history: LogHistory) -> "Figure":
    """The panels of a run, train solid, held-out dashed, two in a row.

    Args:
        log_history: `TrainerState.log_history`.
    """
    from matplotlib.figure import Figure

    shown = panels(log_history)
    columns = 2 if len(shown) > 1 else 1
    rows = max(1, math.ceil(len(shown) / columns))
    width, height = columns * PANEL_WIDTH, rows * PANEL_HEIGHT
    # Margins by hand: to find them by drawing, as constrained layout does, takes twice as long as the drawing.
    drawing = Figure(figsize=(width, height), dpi=110)
    left, right, bottom, top = 0.935, 0.165, 0.55, 0.33  # inches
    drawing.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        hspace=0.28,
        wspace=0.26,
    )
    if not shown:  # with --logging_strategy no
        drawing.text(0.5, 0.5, "no data: the logs hold no loss", ha="center")
    for place, panel in enumerate(shown, start=1):
        axes = drawing.add_subplot(rows, columns, place)
        if panel.decades:
            _scale_by_decades(axes, panel.values(log_history))
        _draw(axes, log_history, panel)
    return drawing


def png(drawing: "Figure") -> bytes:
    """A figure as a PNG file, drawn by Agg: no screen is needed, whatever MPLBACKEND says."""
    image = BytesIO()
    drawing.savefig(image, format="png", backend="agg", pil_kwargs={"compress_level": 1})
    return image.getvalue()


def _draw(axes: "Axes", log_history: LogHistory, panel: Panel) -> None:
    axes.set_title(panel.title, y=1.0)
    axes.set(xlabel="optimiser step", ylabel=panel.unit)
    # Places by hand, and half as many ticks: else half of the drawing is to find where the ticks' labels end.
    axes.xaxis.set_label_coords(0.5, -0.09)
    axes.yaxis.set_label_coords(-0.145, 0.5)
    if axes.get_yscale() == "linear":
        axes.locator_params(axis="y", nbins=5)
    for index, (name, key) in enumerate(panel.keys.items()):
        for prefix, where, style in (("", "train", "-"), (HELD_OUT, "held-out", "--")):
            values = points(log_history, prefix + key)
            if values:
                marker = "o" if len(values) <= FEW_POINTS else "." if len(values) <= SINGLE_POINTS else ""
                # A held-out mark is hollow: one of a short run may have no line to be known by.
                look: Any = {"marker": marker, "markersize": 6, "markerfacecolor": "white" if prefix else f"C{index}"}
                label = f"{name}, {where}" if name else where
                axes.plot(*zip(*values, strict=True), style, color=f"C{index}", label=label, **look)
    if panel.zero:
        axes.axhline(0.0, color="grey", linewidth=0.8, zorder=0)
    _place_legend(axes)
    last = max(logs["step"] for logs in log_history if "step" in logs)
    axes.set_xlim(0, 1.04 * max(last, 1))  # a run of one step too: steps are whole numbers from 0
    axes.xaxis.set_major_locator(_whole_steps())
    axes.grid(alpha=0.3)


def _scale_by_decades(axes: "Axes", values: Sequence[float]) -> None:
    """Let an axis go by decades where values lie in several; 0, where the policy is the reference, stays on it.

    What is less than a thousandth of the largest, such as rounding before the first step, is drawn near 0.
    """
    from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

    largest = max((v for v in values if math.isfinite(v)), default=0.0)
    seen = [value for value in values if value > largest / NEAR_ZERO]
    if not seen or largest < DECADE * min(seen):
        return
    least = 10.0 ** math.floor(math.log10(min(seen)))
    axes.set_yscale("symlog", linthresh=least, linscale=0.4)
    axes.set_ylim(-0.2 * least, 1.2 * largest)  # so that a mark at 0 is whole
    subs = (1.0, 2.0, 5.0) if largest < DECADE**2 * least else (1.0,)
    axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=least, subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _place_legend(axes: "Axes") -> None:
    """A legend in two columns at the top, for which the axis is made longer, so that it covers no line."""
    entries = len(axes.get_legend_handles_labels()[0])
    share = LEGEND_ROW * math.ceil(entries / 2) + 0.03
    axes.legend(loc="upper left", ncols=2, fontsize=8, frameon=False, borderaxespad=0.2)
    to_axis, from_axis = axes.transScale.transform, axes.transScale.inverted().transform
    low, high = (to_axis((1.0, bound))[1] for bound in axes.get_ylim())
    axes.set_ylim(top=float(from_axis((1.0, high + (high - low) * share / (1 - share)))[1]))


def _whole_steps() -> "Locator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, integer=True)
