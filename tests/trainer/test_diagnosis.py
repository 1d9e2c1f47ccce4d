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
from trainer.monitor.diagnosis import Diagnosis, above_start, fallen, mostly_decided, standard_error
from trainer.monitor.stretches import MOST_KEPT, Highest, Stretches
from trainer.objectives import OBJECTIVES
from trainer.objectives.losses import cpo_loss, cpo_ranking_loss, nca_loss
from trainer.objectives.rewards import SURE

REMEDIES = OBJECTIVES.load("cpo").remedies

LOGS = 50


def truths(change: float, error: float, margin: float, groups: int = 320, prefix: str = "") -> dict[str, float]:
    """A log of so many groups, whose truths' changes have this mean and standard error."""
    return {
        f"{prefix}loss": 1.0,
        f"{prefix}logps/ground_truth_change": change,
        f"{prefix}logps/ground_truth_change_square": change**2 + error**2 * (groups - 1),
        f"{prefix}rewards/margin": margin,
    }


# --- ground truths that fall


def test_the_standard_error_is_that_of_a_mean() -> None:
    """By hand: of 1, 2, 3, 6 the mean is 3, the variance 14 / 3."""
    assert standard_error(3.0, (1 + 4 + 9 + 36) / 4, 4) == pytest.approx(math.sqrt(14 / 3 / 4))
    assert standard_error(-0.1, 0.01 - 1e-18, 9) == pytest.approx(0.0, abs=1e-9)  # all equal, but for rounding
    assert standard_error(2.0, 4.0, 1) == 0.0


@pytest.mark.parametrize(
    ("change", "error", "margin", "found"),
    [
        (-0.21, 0.05, 1.0, True),
        (-0.19, 0.0, 1.0, False),  # a dip from which runs come back
        (-0.5, 0.12, 1.0, True),
        (-0.5, 0.13, 1.0, False),  # 3.8 standard errors
        (-8.0, 0.1, -3.0, False),  # nothing is contrasted any more: the loss says so
        (-0.5, math.nan, 1.0, False),
        (math.nan, 0.01, 1.0, False),
    ],
)
def test_a_fall_is_material_significant_and_beside_a_margin(
    change: float, error: float, margin: float, found: bool
) -> None:
    history = [{"step": 20, **truths(change, error, margin)}]
    assert (fallen(history, 16, 0) is not None) == found


def test_the_last_logs_that_hold_256_groups_are_judged_together() -> None:
    """Two logs of 160 groups of mean -0.2 and -0.4: by hand -0.3, and each group's variance 159 and 0.01 more."""
    logs = [{"step": step, **truths(change, 0.03, step / 10, 160)} for step, change in ((10, -0.2), (20, -0.4))]
    assert fallen(logs[:1], 16, 0) is None
    found = fallen(logs, 16, 0)
    assert found is not None
    assert (found.where, found.change, found.groups, found.margin) == ("train", pytest.approx(-0.3), 320, 1.5)
    assert found.error == pytest.approx(math.sqrt((159 * 0.03**2 + 0.01) / 319))
    older = {key: value for key, value in logs[0].items() if not key.endswith("_square")}  # logged before 0.7
    assert fallen([older, logs[1]], 16, 0) is None
    assert fallen([{"step": 20, "loss": 1.0}], 16, 0) is None
    assert fallen([], 16, 0) is None


def healthy(logs: int, groups: int, draw: random.Random, mean: float = 0.0) -> list[dict[str, Any]]:
    """Logs of truths that do not fall; each group's change is normal, with a standard deviation of 1."""
    history = []
    for number in range(1, logs + 1):
        values = [draw.gauss(mean, 1.0) for _ in range(groups)]
        change, square = sum(values) / groups, sum(value**2 for value in values) / groups
        log = {"logps/ground_truth_change": change, "logps/ground_truth_change_square": square, "rewards/margin": 1.0}
        history.append({"step": number * groups // 16, "loss": 1.0, **log})
    return history


def test_truths_that_do_not_fall_raise_no_alarm_and_those_that_fall_by_a_third_of_a_deviation_do() -> None:
    draw = random.Random(0)
    for _ in range(20):
        history = healthy(LOGS, 256, draw)
        assert not any(fallen(history[:end], 16, 0) for end in range(1, LOGS + 1))
        assert fallen(healthy(1, 256, draw, mean=-0.4), 16, 0) is not None


def test_a_short_run_of_four_logs_is_told_of_its_falling_truths_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The quickstart's cpo-bn: 60 steps of 16 groups, logged at steps 1, 20, 40 and 60."""
    run = Run(tmp_path, Diagnosis(REMEDIES))
    for step, change, margin in ((1, 0.0, 0.0), (20, -0.05, 1.0), (40, -0.26, 2.9), (60, -0.39, 3.8)):
        run.log(2 * step, **truths(change, 0.04, margin))  # steps of 8 here, so twice as many
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages == [
        "By step 80 the train ground truths have become less likely than under the reference (-0.26 ± 0.04 nats, over "
        "320 groups) while the margin grew to 2.90. To keep them likely try a smaller --learning_rate, fewer steps, "
        "--sft_weight 0.1 to 1, or an ensemble with the MLE model: python -m trainer.ensemble."
    ]
    resumed = Run(tmp_path, Diagnosis(REMEDIES), checkpoint=run.save(tmp_path / "late.json"))
    resumed.log(160, **truths(-0.5, 0.04, 4.0))
    assert len(caplog.messages) == 1


def test_after_a_resume_the_groups_of_before_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path, Diagnosis(REMEDIES))
    run.log(20, **truths(-0.5, 0.04, 1.0, 160))
    resumed = Run(tmp_path, Diagnosis(REMEDIES), checkpoint=run.save(tmp_path / "early.json"))
    assert caplog.messages == []
    resumed.log(40, **truths(-0.5, 0.04, 1.0, 160))
    assert "over 320 groups" in caplog.text


def test_held_out_truths_are_judged_by_one_evaluation_of_64_groups(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = truths(-0.47, 0.1, 3.0, 64, "eval_")
    Run(tmp_path, Diagnosis(REMEDIES, held_out=63)).log(10, **held_out)
    Run(tmp_path, Diagnosis(REMEDIES)).log(10, **held_out)
    assert caplog.messages == []
    run = Run(tmp_path, Diagnosis(REMEDIES, held_out=64))
    run.log(10, **truths(0.3, 0.01, 3.0))
    run.log(10, **held_out)
    assert "the held-out ground truths have become less likely" in caplog.text
    assert "-0.47 ± 0.10 nats, over 64 groups" in caplog.text


def test_the_line_of_a_checkpoint_from_before_is_not_said_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, Diagnosis(REMEDIES))
    stored = json.loads(Path(run.save(tmp_path / "now.json")).read_text())
    del stored["stateful_callbacks"]["Diagnosis"]
    stored["stateful_callbacks"]["GroundTruthWatch"] = {"args": {}, "attributes": {"warned": True}}
    (tmp_path / "older.json").write_text(json.dumps(stored))
    resumed = Run(tmp_path, Diagnosis(REMEDIES), checkpoint=str(tmp_path / "older.json"))
    resumed.log(40, **truths(-0.5, 0.04, 1.0))
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


def test_a_run_of_fewer_groups_than_128_is_judged_from_16_on_by_three_times_its_start() -> None:
    assert above_start([started(1, 7.0)], 8) is None
    assert above_start([started(1, 6.0)], 16) is None
    found = above_start([started(1, 2.0), started(2, 6.1)], 16)
    assert found is not None
    assert found.loss == 6.1
    of_128 = above_start([started(4, 5.0), started(8, 2.0)], 16)
    assert of_128 is not None
    assert of_128.loss == 3.5


def test_a_stretch_of_a_log_is_judged_where_the_logs_mean_hides_it() -> None:
    hidden = started(100, 1.2, **{"contrast/loss_over_start": 2.25, "contrast/spread": 30.0})
    found = above_start([hidden], 16)
    assert found is not None
    assert (found.loss, found.start) == (4.5, 2.0)
    assert above_start([{**hidden, "contrast/loss_over_start": 1.5}], 16) is None
    higher = above_start([started(100, 5.0, **{"contrast/loss_over_start": 2.25})], 16)
    assert higher is not None
    assert higher.loss == 5.0
    assert above_start([hidden, started(200, 1.2, **{"contrast/loss_over_start": 0.7})], 16) is None  # it is over


def highest(micro_batches: list[tuple[float, float, float]]) -> float | None:
    found = Highest()
    for one in micro_batches:
        found.add(*one)
    return found.ratio


def test_the_highest_stretch_is_of_128_groups_in_a_row() -> None:
    """Micro-batches of 64 groups and a start of 2 each: means of pairs of them are 1, 5 and, alone and left out, 9."""
    parts = [(64 * loss, 128.0, 64.0) for loss in (1.0, 1.0, 4.0, 6.0, 9.0)]
    assert highest(parts) == 2.5
    assert highest(parts[:1]) is None
    assert highest([(1.0, 0.0, 128.0)]) is None
    assert highest([(500.0, 250.0, 125.0), (0.0, 0.0, 0.0), (30.0, 6.0, 3.0)]) == 530 / 256


def test_stretches_are_of_what_the_sums_grew_by_over_all_processes_and_begin_anew_with_each_log() -> None:
    """Two processes that see the same: micro-batches of 64 groups each, so that every one is a stretch of its own."""

    class TwoAlikeStub:
        def reduce(self, sums: torch.Tensor, reduction: str) -> torch.Tensor:
            return 2 * sums

    def log(losses: list[float]) -> dict[str, float]:
        total = torch.zeros(2, dtype=torch.float64)
        for count, loss in enumerate(losses, 1):
            total = total + torch.tensor([64 * loss, 64])
            start = torch.tensor([64.0 * 2 * count, 64 * count], dtype=torch.float64)
            stretches.mark({"loss/contrast": total, "start/contrast": start})
        return stretches.highest()

    stretches = Stretches(TwoAlikeStub())
    assert log([1.0, 6.0, 3.0]) == {"contrast/loss_over_start": 3.0}
    assert log([1.0]) == {"contrast/loss_over_start": 0.5}
    assert log([]) == {}
    many = [1.0] * (2 * MOST_KEPT + 3)
    many[MOST_KEPT] = 5.0  # the first one behind those that were added up
    assert log(many) == {"contrast/loss_over_start": 2.5}
    stretches.mark({"loss/nll": torch.zeros(2)})  # of mle: no start is known
    assert stretches.highest() == {}


def test_the_held_out_loss_is_judged_where_that_of_the_train_groups_is_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = {"eval_loss": 3.2, "eval_start/contrast": 2.0}
    Run(tmp_path, Diagnosis(REMEDIES, held_out=63)).log(10, **lost)
    Run(tmp_path, Diagnosis(REMEDIES, held_out=64)).log(10, **{**lost, "eval_loss": 3.0})
    Run(tmp_path, Diagnosis(REMEDIES, held_out=64)).log(10, eval_loss=9.0)  # of mle: no start is known
    assert caplog.messages == []
    run = Run(tmp_path, Diagnosis(REMEDIES, held_out=64))
    run.log(20, loss=0.8, **{"start/contrast": 2.0})
    run.log(20, **lost)
    run.log(40, **{**lost, "eval_loss": 4.0})
    assert caplog.messages == [
        "By step 20 the last held-out loss is 3.20, 1.6 times its start of 2.00, that of the train groups 0.4 times "
        "its own: what was learned of these is wrong of others. Try fewer steps (--early_stopping_patience 3 stops by "
        "itself), a smaller --learning_rate (now 5e-05), or more data."
    ]
    caplog.clear()
    blown_up = Run(tmp_path, Diagnosis(REMEDIES, held_out=64))
    blown_up.log(20, loss=8.0, **{"start/contrast": 2.0})
    blown_up.log(20, **lost)
    assert ["the step is too large" in line for line in caplog.messages] == [True]
    caplog.clear()
    for logs in ([], [(8, 5.6)]):  # no train loss yet; one of 64 groups, 2.8 times its start
        early = Run(tmp_path, Diagnosis(REMEDIES, held_out=64))
        for step, loss in logs:
            early.log(step, loss=loss, **{"start/contrast": 2.0})
        early.log(8, **lost)
    assert caplog.messages == []


def test_fewer_groups_than_128_are_not_judged_and_then_the_last_ones_that_hold_as_many() -> None:
    """Logs of 2 steps of 16 groups: four of them hold 128."""
    logs = [started(2 * i, 5.0) for i in range(1, 5)]
    assert above_start(logs[:3], 16) is None
    assert above_start(logs, 16) is not None
    logs += [started(2 * i, 1.0) for i in range(5, 8)]
    found = above_start(logs, 16)  # by hand: three of four are 1
    assert found is None
    logs[3] = started(8, 10.0)
    found = above_start(logs, 16)
    assert found is not None
    assert found.loss == (10 + 3) / 4


def test_a_loss_of_ten_times_its_start_is_told_to_take_a_tenth_of_the_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Run(tmp_path, Diagnosis(REMEDIES)).log(20, loss=20.0, **{"start/contrast": 2.0})
    assert caplog.messages[0].endswith("the step is too large. Try a tenth of --learning_rate (now 5e-05), or less.")


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
        "By step 20 the loss has been 8.00, 4.0 times its start of 2.00: the step is too large: at beta 5 a step moves "
        "h apart by up to 2. Try a smaller --learning_rate (now 5e-05), a warm-up (--warmup_steps, now 0), or a "
        "smaller --beta."
    ]
    late = Run(tmp_path, Diagnosis(REMEDIES, beta=5.0), checkpoint=run.save(tmp_path / "late.json"))
    late.log(80, loss=9.0, **{"start/contrast": 2.0})
    assert len(caplog.messages) == 1


def raised(width: float, series: int, logs: int, groups: int = 128) -> float:
    """The share of series in which the line comes, judged after each log of groups of K = 12 h, normal, so wide."""
    draw, found, start = random.Random(0), 0, math.log(12)

    def loss() -> float:
        h = [draw.gauss(0.0, width) for _ in range(12)]
        return math.log(sum(map(math.exp, h))) - h[0]

    for _ in range(series):
        history = [started(i, sum(loss() for _ in range(groups)) / groups, start) for i in range(1, logs + 1)]
        found += any(above_start(history[:end], groups) for end in range(1, logs + 1))
    return found / series


def test_a_loss_of_one_and_a_quarter_of_its_start_hardly_ever_raises_a_false_alarm() -> None:
    assert raised(width=1.2, series=10, logs=20) == 0.0


def test_in_a_run_of_112_groups_four_times_the_start_is_found_and_one_and_a_half_times_is_not() -> None:
    assert raised(width=6.0, series=20, logs=7, groups=16) == 1.0
    assert raised(width=2.0, series=50, logs=7, groups=16) == 0.0


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
    # Three steps of 48 groups are the one stretch of 128 or more.
    assert float(first["contrast/loss_over_start"]) == pytest.approx(float(first["loss"]) / math.log(3), rel=1e-4)
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
