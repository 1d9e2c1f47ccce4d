"""The curves of a training run: what each panel shows, and the image that is written."""

import math
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.training import Run
from trainer.monitor.curves import by_strategy, figure, png, points
from trainer.monitor.watch import Curves

HISTORY: list[dict[str, Any]] = [
    {"step": 10, "loss": 2.5, "logps/ground_truth_change": 0.0, "rewards/margin": 0.1, "rewards/top1": 0.2}
    | {"rewards/margin/an": 0.2, "rewards/margin/bn": 0.3, "rewards/kendall_tau": -0.1}
    | {"start/contrast": 2.0, "contrast/kl_bound": -0.5, "contrast/effective_candidates": 7.0, "contrast/spread": 4.0}
    | {"contrast/decided": 0.25, "contrast/h_per_token": 0.1, "contrast/repeats": 0.5},
    {"step": 10, "eval_loss": 2.6, "eval_logps/ground_truth_change": 0.1, "eval_rewards/margin": 0.05}
    | {"eval_rewards/margin/an": 0.4, "eval_rewards/top1": 0.3, "eval_rewards/kendall_tau": 0.4},
    {"step": 20, "loss": 1.5, "logps/ground_truth_change": -0.5, "rewards/margin": 1.1, "rewards/top1": 0.7}
    | {"rewards/margin/an": 1.2, "rewards/margin/bn": 1.3, "rewards/kendall_tau": 0.5},
    {"step": 20, "train_runtime": 3.0, "train_loss": 2.0},
]


def lines(axes: Any) -> dict[str, tuple[str, list[list[float]]]]:
    """Label of each line in the legend -> its style and its points."""
    return {
        str(line.get_label()): (line.get_linestyle(), line.get_xydata().tolist())
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def test_the_panels_show_the_logs_train_solid_and_held_out_dashed() -> None:
    loss, change, margin, ranking, rivals, distance = figure(HISTORY).axes
    assert lines(loss) == {
        "train": ("-", [[10, 2.5], [20, 1.5]]),
        "held-out": ("--", [[10, 2.6]]),
        "contrast at the start, train": ("-", [[10, 2.0]]),
        "bound on KL(P || A), train": ("-", [[10, -0.5]]),
    }
    assert lines(change) == {"train": ("-", [[10, 0.0], [20, -0.5]]), "held-out": ("--", [[10, 0.1]])}
    assert lines(margin) == {
        "an, train": ("-", [[10, 0.2], [20, 1.2]]),
        "an, held-out": ("--", [[10, 0.4]]),
        "bn, train": ("-", [[10, 0.3], [20, 1.3]]),
    }
    assert lines(ranking) == {
        "top-1 accuracy, train": ("-", [[10, 0.2], [20, 0.7]]),
        "top-1 accuracy, held-out": ("--", [[10, 0.3]]),
        "Kendall's tau, train": ("-", [[10, -0.1], [20, 0.5]]),
        "Kendall's tau, held-out": ("--", [[10, 0.4]]),
        "decided, train": ("-", [[10, 0.25]]),
    }
    assert lines(rivals) == {
        "effective candidates, train": ("-", [[10, 7.0]]),
        "repeats of negatives, train": ("-", [[10, 0.5]]),
    }
    assert lines(distance) == {"spread in a group, train": ("-", [[10, 4.0]]), "per token, train": ("-", [[10, 0.1]])}
    assert distance.get_yscale() == "symlog"
    colours = [line.get_color() for line in margin.get_lines()]
    assert colours == ["C0", "C0", "C1", "grey"]
    assert margin.get_lines()[-1].get_ydata() == [0.0, 0.0]


def test_panels_of_curves_have_titles_units_and_legends() -> None:
    panels = figure(HISTORY).axes
    assert [axes.get_title() for axes in panels] == [
        "Loss",
        "Ground truth, policy minus reference",
        "Margin, h of ground truth minus mean h of negatives",
        "Ranking",
        "What competes",
        "Distance from the reference",
    ]
    assert {axes.get_xlabel() for axes in panels} == {"optimiser step"}
    assert [axes.get_ylabel() for axes in panels] == [
        "loss (nats)",
        "log-probability (nats)",
        "h (beta x nats)",
        "share of groups; tau, -1 to 1",
        "candidates; times shown",
        "h (beta x nats)",
    ]
    for axes in panels:
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == list(lines(axes))


@pytest.mark.parametrize("steps", [1, 3, 75])
def test_short_runs_have_whole_steps_from_0_marks_and_a_legend_beside_the_lines(steps: int) -> None:
    history = [{**HISTORY[0], "step": 1}, {**HISTORY[2], "step": steps}, {**HISTORY[1], "step": steps}]
    drawing = figure(history)
    drawing.canvas.draw()
    for axes in drawing.axes:
        legend = axes.get_legend()
        assert legend is not None
        assert axes.get_xlim() == (0, pytest.approx(1.04 * steps))
        assert all(tick == round(tick) for tick in axes.get_xticks())
        covered = legend.get_window_extent()
        for line in axes.get_lines():
            points = axes.transData.transform(line.get_xydata())
            assert axes.bbox.y0 <= points[:, 1].min()
            assert points[:, 1].max() < covered.y0
        assert all(line.get_marker() in ("o", "None") for line in axes.get_lines() if len(line.get_xydata()) < 3)  # type: ignore[arg-type]  # an array


@pytest.mark.parametrize(
    ("spreads", "per_token", "scale", "ticks"),
    [
        ([0.0], [0.0], "linear", None),
        ([1e-6, 0.4], [0.0, 0.09], "linear", None),  # rounding before the first step, then less than a decade
        ([0.0, 0.4, 0.7], [0.0, 0.02, 0.04], "symlog", ["0", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]),
        ([1e-7, 1.4, 50.0], [1e-8, 0.07, 2.0], "symlog", ["0", "0.01", "0.1", "1", "10"]),
    ],
)
def test_the_distance_goes_by_decades_where_it_has_some_and_0_stays_on_it(
    spreads: list[float], per_token: list[float], scale: str, ticks: list[str] | None
) -> None:
    pairs = zip(spreads, per_token, strict=True)
    logs = [{"step": i, "contrast/spread": s, "contrast/h_per_token": t} for i, (s, t) in enumerate(pairs, start=1)]
    drawing = figure(logs)
    drawing.canvas.draw()
    axes = drawing.axes[-1]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low <= 0 < high
    shown = [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
    if ticks is not None:
        assert [label.get_text() for label in shown][: len(ticks)] == ticks
    boxes = [label.get_window_extent() for label in shown]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    title = axes.yaxis.get_label().get_window_extent()
    assert not any(title.overlaps(box) for box in boxes)


def test_a_single_strategy_needs_no_line_of_its_own() -> None:
    alone = [{"step": 1, "rewards/margin": 1.0, "rewards/margin/an": 1.0}]
    assert by_strategy(alone, "rewards/margin") == {"": "rewards/margin"}
    assert by_strategy([*alone, {"step": 1, "eval_rewards/margin/tn": 1.0}], "rewards/margin") == {
        "an": "rewards/margin/an",
        "tn": "rewards/margin/tn",
    }
    assert lines(figure(alone).axes[0]) == {"train": ("-", [[1, 1.0]])}


def test_panels_without_data_are_left_out() -> None:
    """Next-token prediction shows the loss alone, and no log a line that says so."""
    drawing = figure([{"step": 5, "loss": 3.0, "logps/ground_truth": -40.0}])
    (loss,) = drawing.axes
    assert lines(loss) == {"train": ("-", [[5, 3.0]])}
    assert drawing.get_size_inches().tolist() == [5.5, pytest.approx(11 / 3)]
    assert [axes.get_title() for axes in figure([{"step": 5, "loss": 3.0, "rewards/top1": 0.5}]).axes] == [
        "Loss",
        "Ranking",
    ]
    nothing = figure([{"step": 5, "train_runtime": 3.0}])
    assert nothing.axes == []
    assert [text.get_text() for text in nothing.texts] == ["no data: the logs hold no loss"]
    assert png(nothing).startswith(b"\x89PNG")


def test_a_value_that_is_no_number_is_a_gap() -> None:
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.inf}, {"step": 3, "loss": None}]
    values = [value for _, value in points(history, "loss")]
    assert values[0] == 2.0
    assert all(math.isnan(value) for value in values[1:])
    assert png(figure(history)).startswith(b"\x89PNG")


def test_the_png_is_an_image_of_six_panels(tmp_path: Path) -> None:
    run = Run(tmp_path, Curves())
    for logs in HISTORY[:2]:
        run.log(**logs)
    first = (tmp_path / "training.png").read_bytes()
    run.log(**HISTORY[2])
    run.event("on_train_end")
    last = (tmp_path / "training.png").read_bytes()
    assert first != last
    image = Image.open(BytesIO(last))
    image.load()
    assert (image.format, image.size) == ("PNG", (1210, 1210))
    assert len(set(image.convert("L").get_flattened_data())) > 20  # drawn, not blank
    assert [path.name for path in tmp_path.iterdir()] == ["training.png"]
