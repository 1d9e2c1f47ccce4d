"""What a run is told about itself: when each line comes, how often it is a false alarm, and that it comes once."""

import json
import logging
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import Run, make_trainer
from trainer.monitor.diagnosis import Diagnosis, above_start, falling_while_growing, mostly_decided, trend
from trainer.objectives import OBJECTIVES
from trainer.objectives.losses import cpo_loss, cpo_ranking_loss, nca_loss
from trainer.objectives.rewards import SURE

REMEDIES = OBJECTIVES.load("cpo").remedies

LOGS = 50


def noise(seed: int, scale: float = 1.0, slope: float = 0.0) -> list[float]:
    draw = random.Random(seed)
    return [slope * i + draw.gauss(0.0, scale) for i in range(LOGS)]


def alarm(changes: list[float], margins: list[float]) -> int | None:
    """The log at which the watch would warn, judging after each; None if never."""
    ends = range(1, len(changes) + 1)
    return next((end for end in ends if falling_while_growing(changes[:end], margins[:end])), None)


def contrast(change: float, margin: float, prefix: str = "") -> dict[str, float]:
    return {
        f"{prefix}loss": 1.0,
        f"{prefix}logps/ground_truth_change": change,
        f"{prefix}rewards/margin": margin,
    }


# --- ground truths that fall


@pytest.mark.parametrize(
    ("n", "expected"), [(1, 0.0), (8, 27 / math.sqrt(8 * 7 * 21 / 18)), (9, 35 / math.sqrt(9 * 8 * 23 / 18))]
)
def test_the_trend_is_mann_and_kendalls_z(n: int, expected: float) -> None:
    assert trend([float(i) for i in range(n)]) == pytest.approx(expected)
    assert trend([-float(i) for i in range(n)]) == pytest.approx(-expected)


def test_the_trend_counts_ordered_pairs_not_sizes() -> None:
    """By hand: of the six pairs of 1, 3, 2, 9 five rise and one falls; (4 - 1) / sqrt(4 * 3 * 13 / 18)."""
    assert trend([1, 3, 2, 9]) == pytest.approx(3 / math.sqrt(26 / 3))
    assert trend([1, 3, 2, 9000]) == trend([1, 3, 2, 9])
    assert trend([2.0] * 10) == 0.0


def test_flat_noise_hardly_ever_raises_a_false_alarm() -> None:
    """Judged after each of 50 logs, the margin growing all along, which is the harder case: below 2 %."""
    growing = [float(i) for i in range(LOGS)]
    assert sum(alarm(noise(seed), growing) is not None for seed in range(200)) / 200 < 0.02
    assert not any(alarm(noise(seed), noise(seed + 1000)) for seed in range(200))


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_a_fall_of_one_standard_deviation_per_five_logs_is_always_found(scale: float) -> None:
    found = [alarm(noise(s, scale, -scale / 5), noise(s + 1000, scale, scale / 5)) for s in range(100)]
    assert None not in found
    assert sorted(found)[50] <= 25  # type: ignore[type-var]


@pytest.mark.seconds
def test_no_alarm_when_the_ground_truth_rises_or_the_margin_is_flat() -> None:
    fall = [-float(i) for i in range(LOGS)]
    assert alarm(fall, [3.0] * LOGS) is None
    assert sum(alarm(fall, noise(seed)) is not None for seed in range(200)) / 200 < 0.02
    for seed in range(50):
        growing, falling = noise(seed + 1000, 1.0, 0.3), noise(seed, 1.0, -0.3)
        assert alarm(noise(seed, 1.0, 0.3), growing) is None
        assert alarm(falling, falling) is None
        assert alarm(falling, growing) is not None


def test_no_alarm_for_a_single_dip_above_the_reference_or_a_fall_of_next_to_nothing() -> None:
    growing = [float(i) for i in range(LOGS)]
    for seed in range(50):
        dip = noise(seed, 0.1, 0.01)
        dip[20] -= 100.0
        assert alarm(dip, growing) is None
    above = [10.0 - 0.1 * i for i in range(LOGS)]
    assert alarm(above, growing) is None
    assert alarm([-0.001 * i for i in range(LOGS)], growing) is None
    assert alarm([-0.01 * i for i in range(LOGS)], growing) == 14  # the mean of logs 10 to 14 is -0.11


def test_eight_logs_are_too_few_and_nine_enough() -> None:
    falling, growing = [-float(i) for i in range(9)], [float(i) for i in range(9)]
    assert not falling_while_growing(falling[:8], growing[:8])
    assert falling_while_growing(falling, growing)
    assert not falling_while_growing([], [])


def test_the_warning_comes_once_in_one_line_and_says_what_to_try(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, Diagnosis(REMEDIES))
    for step in range(0, 300, 10):
        run.log(step, **contrast(-step / 10, step / 5))
        assert len(caplog.records) == (step >= 80)
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.messages == [
        "By step 80 the train ground truths have become less likely than under the reference (-6.00 nats, and falling "
        "over the last 9 logs) while the margin grows (now 12.00). To keep them likely try a smaller --beta or "
        "--learning_rate, fewer steps, --sft_weight 0.1 to 1, or an ensemble with the MLE "
        "model: python -m trainer.ensemble."
    ]


def test_held_out_logs_decide_once_there_are_nine_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path, Diagnosis(REMEDIES))
    for step in range(9):  # not yet below the reference on train groups, and rising on held-out ones
        run.log(step, **contrast(7.0 - step, step))
        run.log(step, **contrast(step, step, "eval_"))
    for step in range(9, 30):
        run.log(step, **contrast(7.0 - step, step))
    assert caplog.messages == []
    for step in range(30, 60):
        run.log(step, **contrast(7.0 - step, step, "eval_"))
    assert len(caplog.messages) == 1
    assert "the held-out ground truths" in caplog.messages[0]


def test_logs_without_both_numbers_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path, Diagnosis(REMEDIES))
    for step in range(8):
        run.log(step, **contrast(-step, step))
        run.log(step, **contrast(math.nan, step))
        run.log(step, loss=1.0, **{"logps/ground_truth": -30.0 - step})
    assert caplog.messages == []
    run.log(8, **contrast(-8, 8))
    assert len(caplog.messages) == 1


def test_after_a_resume_there_is_no_second_warning_but_a_first_one_if_none_came(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, Diagnosis(REMEDIES))
    for step in range(5):
        run.log(step, **contrast(-step, step))
    early = run.save(tmp_path / "early.json")
    for step in range(5, 10):
        run.log(step, **contrast(-step, step))
    late = run.save(tmp_path / "late.json")
    assert len(caplog.messages) == 1
    warned = Run(tmp_path, Diagnosis(REMEDIES), checkpoint=late)
    for step in range(10, 20):
        warned.log(step, **contrast(-step, step))
    assert len(caplog.messages) == 1
    not_yet = Run(tmp_path, Diagnosis(REMEDIES), checkpoint=early)
    for step in range(5, 9):  # with the five logs of the checkpoint's history
        not_yet.log(step, **contrast(-step, step))
    assert len(caplog.messages) == 2
    assert "over the last 9 logs" in caplog.messages[1]


def test_the_line_of_a_checkpoint_from_before_is_not_said_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, Diagnosis(REMEDIES))
    stored = json.loads(Path(run.save(tmp_path / "now.json")).read_text())
    del stored["stateful_callbacks"]["Diagnosis"]
    stored["stateful_callbacks"]["GroundTruthWatch"] = {"args": {}, "attributes": {"warned": True}}
    (tmp_path / "older.json").write_text(json.dumps(stored))
    resumed = Run(tmp_path, Diagnosis(REMEDIES), checkpoint=str(tmp_path / "older.json"))
    for step in range(30):
        resumed.log(step, **contrast(-step, step))
    assert caplog.messages == []
    state = json.loads(Path(resumed.save(tmp_path / "again.json")).read_text())
    assert state["stateful_callbacks"]["Diagnosis"]["attributes"] == {"said": ["falling"]}
    assert "GroundTruthWatch" not in state["stateful_callbacks"]


# --- a step that is too large


def started(step: int, loss: float, start: float = 2.0, **more: float) -> dict[str, Any]:
    return {"step": step, "loss": loss, "start/contrast": start, **more}


def test_a_loss_is_above_its_start_from_one_and_a_half_times_on() -> None:
    assert above_start([started(10, 3.0)], 16) is None
    found = above_start([started(10, 3.01)], 16)
    assert found is not None
    assert (found.loss, found.start, found.moved) == (3.01, 2.0, None)
    assert above_start([{"step": 10, "loss": 99.0}], 64) is None  # of mle: no start is known
    assert above_start([started(10, 3.0, start=0.0)], 64) is None
    assert above_start([], 64) is None


def test_of_several_terms_the_one_whose_start_is_known_is_judged() -> None:
    assert above_start([started(1, 9.0, **{"loss/contrast": 2.5, "loss/sft": 6.5})], 128) is None
    found = above_start([started(1, 9.0, **{"loss/contrast": 4.0, "loss/sft": 5.0})], 128)
    assert found is not None
    assert found.loss == 4.0


def test_fewer_groups_than_128_are_not_judged_and_then_the_last_ones_that_hold_as_many() -> None:
    """Logs of 2 steps of 16 groups: four of them hold 128."""
    logs = [started(2 * i, 9.0) for i in range(1, 5)]
    assert above_start(logs[:3], 16) is None
    assert above_start(logs, 16) is not None
    logs += [started(2 * i, 1.0) for i in range(5, 8)]
    found = above_start(logs, 16)  # by hand: three of four are 1
    assert found is None
    logs[3] = started(8, 10.0)
    found = above_start(logs, 16)
    assert found is not None
    assert found.loss == (10 + 3) / 4


def test_what_a_step_moves_is_the_fastest_growth_of_the_spread_by_updates() -> None:
    """The groups of steps 1 to 10 are seen after 4.5 updates on average, those of steps 11 to 20 after 14.5."""
    logs = [started(step, 8.0, **{"contrast/spread": spread}) for step, spread in ((10, 9.0), (20, 39.0), (30, 40.0))]
    moved = []
    for end in (1, 2, 3):
        found = above_start(logs[:end], 64)
        assert found is not None
        moved.append(found.moved)
    assert moved == [9.0 / 4.5, (39.0 - 9.0) / 10, 3.0]
    first = above_start([started(1, 8.0, **{"contrast/spread": 0.1})], 128)
    assert first is not None
    assert first.moved is None  # no step was made before its groups were seen


def test_the_line_of_a_large_step_comes_once_and_says_what_to_try(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, Diagnosis(REMEDIES, beta=5.0))
    for step in (20, 40, 60):  # of 8 groups; those of the first 20 were seen after 9.5 updates on average
        run.log(step, loss=8.0, **{"start/contrast": 2.0, "contrast/spread": 19.0})
    assert caplog.messages == [
        "By step 20 the loss is 8.00, 4.0 times its start of 2.00: the step is too large: at beta 5 a step moves h "
        "apart by up to 2. Try a smaller --learning_rate (now 5e-05), a warm-up (--warmup_steps, now 0), a smaller "
        "--beta, or a --max_grad_norm (now 1) below the usual grad_norm of the log."
    ]
    late = Run(tmp_path, Diagnosis(REMEDIES, beta=5.0), checkpoint=run.save(tmp_path / "late.json"))
    late.log(80, loss=9.0, **{"start/contrast": 2.0})
    assert len(caplog.messages) == 1


def raised(width: float, series: int, logs: int) -> float:
    """The share of series in which the line comes, judged after each log of 128 groups of K = 12 h, normal, so wide."""
    draw, found, start = random.Random(0), 0, math.log(12)

    def loss() -> float:
        h = [draw.gauss(0.0, width) for _ in range(12)]
        return math.log(sum(map(math.exp, h))) - h[0]

    for _ in range(series):
        history = [started(i, sum(loss() for _ in range(128)) / 128, start) for i in range(1, logs + 1)]
        found += any(above_start(history[:end], 128) for end in range(1, logs + 1))
    return found / series


def test_a_loss_of_one_and_a_quarter_of_its_start_hardly_ever_raises_a_false_alarm() -> None:
    assert raised(width=1.2, series=10, logs=20) == 0.0


def test_a_loss_of_twice_its_start_is_found_at_once() -> None:
    assert raised(width=2.5, series=10, logs=1) == 1.0


# --- negatives that are decided


def diagnosis(objective: str) -> Diagnosis:
    chosen = OBJECTIVES.load(objective)
    return Diagnosis.of(chosen, chosen.Options())


def decided(step: int, share: float) -> dict[str, Any]:
    return {"step": step, "loss": 0.1, "contrast/decided": share}


def test_the_share_of_decided_groups_is_that_of_the_last_256() -> None:
    assert mostly_decided([decided(3, 1.0)], 64) is None
    assert mostly_decided([decided(4, 0.9)], 64) is None
    assert mostly_decided([decided(4, 0.91)], 64) == 0.91
    assert mostly_decided([decided(2, 0.9), decided(4, 0.94)], 64) == pytest.approx(0.92)
    assert mostly_decided([decided(4, 0.95), decided(8, 0.2)], 64) is None
    assert mostly_decided([{"step": 9, "loss": 0.1}], 64) is None


def test_four_fifths_of_decided_groups_hardly_ever_raise_a_false_alarm() -> None:
    draw, found = random.Random(0), 0
    for _ in range(20):
        history = [decided(4 * i, sum(draw.random() < 0.8 for _ in range(256)) / 256) for i in range(1, LOGS + 1)]
        found += any(mostly_decided(history[:end], 64) for end in range(1, LOGS + 1))
    assert found == 0


def test_decided_negatives_are_said_once_with_repeats_and_held_out_groups(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, diagnosis("cpo"))
    run.log(40, eval_loss=2.0, **{"eval_contrast/decided": 0.25})
    run.log(40, loss=0.1, **{"contrast/decided": 0.93, "contrast/repeats": 3.2})
    run.log(80, loss=0.1, **{"contrast/decided": 0.99, "contrast/repeats": 6.4})
    assert caplog.messages == [
        "By step 40 the train groups are decided (in 93% the softmax gives the ground truth more than 0.99): their "
        "negatives are too easy, or known by heart (shown 3.2 times so far), and teach next to nothing more; of the "
        "held-out groups 25% are decided. Try harder ones (--use an=4:hard), a larger pool (--use an=4:random), "
        "negatives of the model as it is now, fewer steps, or a smaller --beta."
    ]
    caplog.clear()
    early = Run(tmp_path, diagnosis("cpo"))
    early.log(40, loss=0.1, **{"contrast/decided": 0.93, "contrast/repeats": 0.5})
    assert "negatives are too easy, and teach next to nothing more. Try" in caplog.text


@pytest.mark.parametrize("objective", ["cpo-rank", "nca"])
def test_decided_groups_are_no_news_where_they_still_teach(
    objective: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Run(tmp_path, diagnosis(objective)).log(40, loss=0.1, **{"contrast/decided": 1.0})
    assert caplog.messages == []


@pytest.mark.parametrize(("name", "loss"), [("cpo", cpo_loss), ("cpo-rank", cpo_ranking_loss), ("nca", nca_loss)])
def test_what_a_decided_group_still_teaches_is_as_its_objective_says(name: str, loss: Any) -> None:
    """The largest |d loss / dh| of groups that the softmax decides: two equal negatives; all h far above 0."""
    h = torch.tensor([[6.0, 0.0, 0.0], [16.0, 10.0, 8.0]], requires_grad=True)
    assert (h.softmax(-1)[:, 0] > SURE).all()
    ranks = {"ranks": torch.arange(3).expand(2, 3)} if name == "cpo-rank" else {}
    loss(h, torch.zeros(2, 3), **ranks, beta=1.0).backward()
    assert h.grad is not None
    largest = float(h.grad.abs().max()) * len(h)  # the loss is a mean over groups
    assert (largest < 1 - SURE) == OBJECTIVES.load(name).done_when_decided
    assert OBJECTIVES.load(name).done_when_decided or largest > 0.2


# --- real runs


@pytest.mark.seconds
def test_a_run_logs_what_it_is_diagnosed_by_and_a_too_large_step_is_named(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(
        reference, negative_set, tmp_path, max_steps=3, logging_steps=3, logging_first_step=False,
        per_device_train_batch_size=48, learning_rate=0.3, lr_scheduler_type="constant", use="an=2:random",
        max_grad_norm=0.0,
    )  # fmt: skip
    trainer.add_callback(Diagnosis(trainer.objective.remedies, 5.0))
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["start/contrast"] == pytest.approx(math.log(3))
    assert first["contrast/repeats"] == pytest.approx(2.0, abs=1e-3)  # three epochs of two of three
    assert first["grad_norm"] > 0
    assert {"kl_bound", "effective_candidates", "spread", "decided", "h_per_token"} <= {
        name.removeprefix("contrast/") for name in first
    }
    assert float(first["contrast/kl_bound"]) == pytest.approx(math.log(3) - float(first["loss"]), abs=1e-3)
    assert float(first["contrast/spread"]) > float(first["contrast/h_per_token"]) > 0
    (line, *_) = (r.getMessage() for r in caplog.records if r.name == "trainer.monitor.diagnosis")
    assert "times its start of 1.10: the step is too large: at beta 5 a step moves h apart by up to " in line


@pytest.mark.seconds
def test_a_quiet_run_is_told_nothing_and_starts_where_it_should(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(
        reference, negative_set, tmp_path, max_steps=3, logging_steps=1, per_device_train_batch_size=48,
        learning_rate=1e-5,
    )  # fmt: skip
    trainer.add_callback(Diagnosis(trainer.objective.remedies, 5.0))
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["contrast/effective_candidates"] == pytest.approx(4.0, abs=1e-3)
    assert first["contrast/decided"] == 0.0
    assert first["contrast/spread"] < 1e-2
    assert not [r for r in caplog.records if r.name == "trainer.monitor.diagnosis"]
