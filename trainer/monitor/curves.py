"""The curves of a training run, from transformers' log history: what training.png shows."""

import math
from collections.abc import Mapping, Sequence
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


def figure(log_history: LogHistory) -> "Figure":
    """Six panels, train solid, held-out dashed: loss beside its start, ground truth against the reference, margin,
    ranking, what competes, how far h is.

    Args:
        log_history: `TrainerState.log_history`.
    """
    from matplotlib.figure import Figure

    # Margins by hand: to find them by drawing, as constrained layout does, takes twice as long as the drawing.
    drawing = Figure(figsize=(11, 11), dpi=110)
    drawing.subplots_adjust(left=0.085, right=0.985, bottom=0.05, top=0.97, hspace=0.28, wspace=0.26)
    (loss, change), (margin, ranking), (rivals, distance) = drawing.subplots(3, 2)
    _draw(loss, log_history, "Loss", "loss (nats)", losses(log_history))
    _draw(
        change, log_history, "Ground truth, policy minus reference", "log-probability (nats)", {"": CHANGE}, zero=True
    )
    margins = by_strategy(log_history, MARGIN)
    _draw(
        margin,
        log_history,
        "Margin, h of ground truth minus mean h of negatives",
        "h (beta x nats)",
        margins,
        zero=True,
    )
    names = {"top-1 accuracy": "rewards/top1", "Kendall's tau": "rewards/kendall_tau", "decided": DECIDED}
    _draw(ranking, log_history, "Ranking", "share of groups; tau, -1 to 1", names)
    names = {"effective candidates": CANDIDATES, "repeats of negatives": REPEATS}
    _draw(rivals, log_history, "What competes", "candidates; times shown", names)
    names = {"spread in a group": SPREAD, "per token": PER_TOKEN}
    _scale_by_decades(
        distance, [v for k in names.values() for p in ("", HELD_OUT) for _, v in points(log_history, p + k)]
    )
    _draw(distance, log_history, "Distance from the reference", "h (beta x nats)", names)
    return drawing


def png(drawing: "Figure") -> bytes:
    """A figure as a PNG file, drawn by Agg: no screen is needed, whatever MPLBACKEND says."""
    image = BytesIO()
    drawing.savefig(image, format="png", backend="agg", pil_kwargs={"compress_level": 1})
    return image.getvalue()


def _draw(
    axes: "Axes", log_history: LogHistory, title: str, unit: str, keys: Mapping[str, str], *, zero: bool = False
) -> None:
    """One panel; a line's train and held-out values have one colour.

    Args:
        zero: a line at 0 is drawn, where the policy is the reference.
    """
    axes.set_title(title, y=1.0)
    axes.set(xlabel="optimiser step", ylabel=unit)
    # Places by hand, and half as many ticks: else half of the drawing is to find where the ticks' labels end.
    axes.xaxis.set_label_coords(0.5, -0.09)
    axes.yaxis.set_label_coords(-0.145, 0.5)
    if axes.get_yscale() == "linear":
        axes.locator_params(axis="y", nbins=5)
    for index, (name, key) in enumerate(keys.items()):
        for prefix, where, style in (("", "train", "-"), (HELD_OUT, "held-out", "--")):
            values = points(log_history, prefix + key)
            if values:
                marker = "o" if len(values) <= FEW_POINTS else "." if len(values) <= SINGLE_POINTS else ""
                # A held-out mark is hollow: one of a short run may have no line to be known by.
                look: Any = {"marker": marker, "markersize": 6, "markerfacecolor": "white" if prefix else f"C{index}"}
                label = f"{name}, {where}" if name else where
                axes.plot(*zip(*values, strict=True), style, color=f"C{index}", label=label, **look)
    if axes.get_lines():
        if zero:
            axes.axhline(0.0, color="grey", linewidth=0.8, zorder=0)
        _place_legend(axes)
        last = max(logs["step"] for logs in log_history if "step" in logs)
        axes.set_xlim(0, 1.04 * max(last, 1))  # a run of one step too: steps are whole numbers from 0
        axes.xaxis.set_major_locator(_whole_steps())
        axes.grid(alpha=0.3)
    else:
        wanted = "\n".join(keys.values())
        axes.text(0.5, 0.5, f"no data: the logs hold no\n{wanted}", ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])


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
