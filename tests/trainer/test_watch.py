"""The watch on training: what metrics.jsonl holds, and what a real run that was stopped and resumed leaves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from data.command.errors import UserError
from tests.support.training import Run, metrics
from trainer.monitor.curves import panels
from trainer.monitor.diagnosis import Diagnosis
from trainer.monitor.metrics_file import MetricsFile
from trainer.monitor.watch import Curves
from trainer.objectives import OBJECTIVES

REMEDIES = OBJECTIVES.load("cpo").remedies


# --- metrics.jsonl


def test_each_log_is_one_line_step_first_then_sorted_keys(tmp_path: Path) -> None:
    run = Run(tmp_path, MetricsFile())
    run.log(10, loss=1.25, epoch=0.5, grad_norm=2.0)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 10, "epoch": 0.5, "grad_norm": 2.0, "loss": 1.25}\n'
    run.log(20, eval_loss=1.5)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[1:] == ['{"step": 20, "eval_loss": 1.5}']


@pytest.mark.parametrize(("step", "strategy", "logged"), [(2, "steps", False), (3, "steps", True), (3, "no", False)])
def test_the_last_step_is_logged_whatever_the_interval(tmp_path: Path, step: int, strategy: str, logged: bool) -> None:
    args = TrainingArguments(str(tmp_path), logging_strategy=strategy, logging_steps=10, use_cpu=True)
    control = TrainerControl()
    MetricsFile().on_step_end(args, TrainerState(global_step=step, max_steps=3), control)
    assert control.should_log is logged


def test_a_logged_value_that_is_no_finite_number_is_null(tmp_path: Path) -> None:
    run = Run(tmp_path, MetricsFile())
    run.log(1, loss=math.nan, grad_norm=math.inf, **{"rewards/margin": -math.inf, "epoch": 1})
    line = (tmp_path / "metrics.jsonl").read_text()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    expected = {"step": 1, "loss": None, "grad_norm": None, "rewards/margin": None, "epoch": 1}
    assert json.loads(line, parse_constant=refuse) == expected


def test_resuming_gives_the_file_of_a_run_that_never_stopped(tmp_path: Path) -> None:
    def logs(step: int) -> dict[str, float]:
        return {"loss": 1 / step, "epoch": step / 7, "grad_norm": math.nan if step == 2 else 0.1 * step}

    whole = Run(tmp_path / "whole", MetricsFile())
    for step in range(1, 7):
        whole.log(step, **logs(step))
    stopped = Run(tmp_path / "parts", MetricsFile())
    for step in range(1, 4):
        stopped.log(step, **logs(step))
    checkpoint = stopped.save(tmp_path / "trainer_state.json")
    stopped.log(3, train_runtime=9.0)  # the summary of a run that was told to stop
    stopped.log(4, loss=99.0)
    parts = tmp_path / "parts" / "metrics.jsonl"
    parts.write_text(parts.read_text() + '{"step": 5, "lo')
    resumed = Run(tmp_path / "parts", MetricsFile(), checkpoint=checkpoint)
    for step in range(4, 7):
        resumed.log(step, **logs(step))
    assert parts.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert len(parts.read_text().splitlines()) == 6


def test_starting_again_without_a_checkpoint_drops_the_lines_of_the_attempt(tmp_path: Path) -> None:
    Run(tmp_path, MetricsFile()).log(1, loss=1.0)
    Run(tmp_path, MetricsFile()).log(1, loss=2.0)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_only_the_main_process_writes_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path / "out", MetricsFile(), Diagnosis(REMEDIES), Curves(), main=False)
    for step in range(30):
        falling = {"logps/ground_truth_change": -step, "logps/ground_truth_change_square": step**2}
        run.log(step, **{"loss": 1.0, **falling, "rewards/margin": step})
    run.event("on_save")
    run.event("on_train_end")
    assert not (tmp_path / "out").exists()
    assert caplog.text == ""


def test_a_place_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="is a file"):
        Run(tmp_path / "out", MetricsFile())


def test_a_failed_line_costs_a_warning_and_the_next_log_makes_up_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, MetricsFile(), Curves())
    run.log(1, loss=1.0)
    file = tmp_path / "metrics.jsonl"
    file.unlink()
    file.mkdir()  # nothing can be written there, nor renamed onto it
    (tmp_path / "training.png").unlink()
    (tmp_path / "training.png").mkdir()
    run.log(2, loss=2.0)
    run.event("on_save")
    assert "metrics.jsonl lacks step 2 and goes on" in caplog.text
    assert "training.png is not drawn: cannot write" in caplog.text
    run.log(3, loss=3.0)
    file.rmdir()
    run.log(4, loss=4.0)
    run.log(5, loss=5.0)
    assert [json.loads(line)["loss"] for line in file.read_text().splitlines()] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp-")]


# --- training.png


class Clock:
    """time.perf_counter of a module; a drawing takes so many seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now, self.drawn = 1000.0, list[float]()
        monkeypatch.setattr("trainer.monitor.watch.time.perf_counter", lambda: self.now)

        def draw_stub(_: Any) -> bytes:
            self.drawn.append(self.now)
            self.now += seconds
            return b"drawn"

        monkeypatch.setattr("trainer.monitor.watch.figure", lambda history: history)
        monkeypatch.setattr("trainer.monitor.watch.png", draw_stub)


def test_the_curves_are_there_after_the_log_of_step_1(tmp_path: Path) -> None:
    Run(tmp_path, Curves()).log(1, loss=1.0)
    assert Image.open(tmp_path / "training.png").size == (605, 403)  # one panel: the log holds the loss alone


def test_drawing_at_logs_takes_a_fiftieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, seconds=2.0)
    run = Run(tmp_path, Curves())
    for step in range(1, 31):
        run.log(step, loss=1.0)
        clock.now += 10.0
    assert clock.drawn == [1000.0, 1102.0, 1204.0]  # every 100 s, at the next log: 50 x 2 s
    run.event("on_save")
    run.event("on_train_end")
    assert len(clock.drawn) == 5


# --- a real Trainer


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * x - labels).pow(2).mean(), "logits": self.weight * x}


class FallingTrainer(Trainer):
    """Adds to its logs a ground truth that falls by a nat per step and a margin that grows."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        prefix = next((p for p in ("", "eval_") if f"{p}loss" in logs), None)
        if prefix is not None:
            step = float(self.state.global_step)
            change = {"logps/ground_truth_change": -step, "logps/ground_truth_change_square": step**2}
            logs |= {prefix + name: value for name, value in {**change, "rewards/margin": step}.items()}
        super().log(logs, start_time)


def train(output: Path, steps: int, resume: str | None = None) -> FallingTrainer:
    arguments = TrainingArguments(
        output_dir=str(output),
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        max_steps=16,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=4,
        save_steps=10,
        per_device_train_batch_size=32,
        seed=0,
    )

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= state.global_step >= steps

    rows = [{"x": torch.tensor([float(i)]), "labels": torch.tensor([0.5 * i])} for i in range(6)]
    trainer = FallingTrainer(model=Line(), args=arguments, train_dataset=rows, eval_dataset=rows[:2])  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    for callback in (MetricsFile(), Diagnosis(REMEDIES), Curves(), Stop()):
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.seconds
def test_a_real_training_run_stopped_and_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = train(tmp_path / "whole", 16)
    written = metrics(tmp_path / "whole")
    assert written == json.loads(json.dumps(whole.state.log_history))
    assert [line["step"] for line in written if "loss" in line] == list(range(1, 17))
    assert [line["step"] for line in written if "eval_loss" in line] == [4, 8, 12, 16]
    assert written[-1]["step"] == 16
    assert "train_runtime" in written[-1]
    warnings = [record.getMessage() for record in caplog.records if record.name == "trainer.monitor.diagnosis"]
    assert [w[:14] for w in warnings] == ["By step 8 the "]  # 8 steps of 32 rows
    stored = json.loads((tmp_path / "whole" / "checkpoint-10" / "trainer_state.json").read_text())
    assert stored["stateful_callbacks"]["Diagnosis"] == {
        "args": {"remedies": REMEDIES, "beta": 1.0, "done_when_decided": False, "held_out": 0},
        "attributes": {"said": ["falling"]},
    }

    caplog.clear()
    train(tmp_path / "parts", 13)
    assert metrics(tmp_path / "parts")[-1]["step"] == 13
    train(tmp_path / "parts", 16, resume=str(tmp_path / "parts" / "checkpoint-10"))
    timings = ("runtime", "per_second", "train_loss", "flos")  # what no two runs share

    def lasting(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if not k.endswith(timings)} for line in lines]

    assert lasting(metrics(tmp_path / "parts")) == lasting(written)
    assert len([r for r in caplog.records if r.name == "trainer.monitor.diagnosis"]) == 1  # before the stop, not after
    shown = ["Loss", "Ground truth, policy minus reference", "Margin, h of ground truth minus mean h of negatives"]
    assert [panel.title for panel in panels(whole.state.log_history)] == shown
    assert Image.open(tmp_path / "parts" / "training.png").size == (1210, 806)
