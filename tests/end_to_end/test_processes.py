"""Several processes train as one does: the same groups per step, exact resume, and they stop together."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.shards import NegativeSet
from tests.support.commands import ROOT, fork_command
from tests.support.processes import TwoProcesses, free_port
from tests.support.tiny import make_negative_set
from tests.support.training import cli
from trainer.run import main
from trainer.trainer import ContrastiveTrainer

pytestmark = pytest.mark.seconds


def train(processes: int, words: list[str]) -> None:
    """Train by one command in one process or two, with as many groups in each step."""
    if processes == 1:
        assert main(words) == 0
    else:
        words = [*words, "--ddp_backend", "gloo"]
        place = words.index("--per_device_train_batch_size") + 1
        words[place] = str(int(words[place]) // processes)
        TwoProcesses.start(main, words).finish()


RANDOM, PSS, DPO = ("--objective", "cpo-rank", "--use", "an=2:random"), ("--objective", "pss"), ("--objective", "dpo")


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        pytest.param(RANDOM, 1, id="random-1"),
        pytest.param(RANDOM, 2, id="random-2"),
        pytest.param(PSS, 1, id="pss-1"),
        pytest.param(PSS, 2, id="pss-2"),
        pytest.param(DPO, 1, id="dpo-1", marks=pytest.mark.slow),
        pytest.param(DPO, 2, id="dpo-2"),
    ],
)
def test_resuming_in_a_later_epoch_gives_the_same_parameters_as_never_stopping(
    options: tuple[str, ...], processes: int, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """An epoch is 3 steps of 16 groups (dpo: 9 of 16 pairs); it stops after the first of the second epoch."""
    last = 14 if "dpo" in options else 6
    stop = 10 if "dpo" in options else 4
    out = tmp_path / "out"
    words = cli(reference, negative_set, out, "--max_steps", str(last), "--save_steps", str(stop), *options)
    words[words.index("--per_device_train_batch_size") + 1] = "16"
    train(processes, words)
    whole = load_file(out / "model.safetensors")
    # What an interrupted run leaves: its checkpoint, no final model.
    (out / "model.safetensors").unlink()
    (out / "trainer_state.json").unlink()
    shutil.rmtree(out / f"checkpoint-{last}")
    train(processes, [*words, "--resume_from_checkpoint", "true"])
    resumed = load_file(out / "model.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_held_out_groups_fewer_than_processes_are_averaged_as_in_one(reference: Path, tmp_path: Path) -> None:
    """Three groups, two per process and pass, then one: the second process has one, then none at all."""
    make_negative_set(tmp_path / "halves", reference, num_groups=24, num_negatives=2, split="all")
    found = {}
    for processes, groups in ((1, 3), (2, 3), (1, 1), (2, 1)):
        out = tmp_path / f"{processes}-{groups}"
        words = cli(reference, tmp_path / "halves", out, "--max_steps", "1", "--save_strategy", "no")
        words += ["--eval_strategy", "steps", "--eval_steps", "1", "--per_device_eval_batch_size", "2"]
        train(processes, [*words, "--report_to", "none", "--max_eval_samples", str(groups)])
        logs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        (found[processes, groups],) = (log for log in logs if "eval_loss" in log)
    for groups in (3, 1):
        assert found[1, groups].keys() == found[2, groups].keys()
        for name, value in found[1, groups].items():
            if name != "eval_runtime":
                assert found[2, groups][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


def difference(start: Path, one: Path, other: Path) -> float:
    """How far two trained models are apart, as a share of how far the first has moved."""
    tensors = [load_file(directory / "model.safetensors") for directory in (start, one, other)]
    first, expected, found = (torch.cat([t[name].flatten() for name in sorted(t)]) for t in tensors)
    assert (expected - first).norm() > 1e-3
    return float((expected - found).norm() / (expected - first).norm())


@pytest.fixture(scope="module")
def odd_set(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 groups, K = 3."""
    out = tmp_path_factory.mktemp("sets") / "odd"
    make_negative_set(out, reference, num_groups=13, num_negatives=2)
    return out


@pytest.mark.parametrize(
    ("objective", "drop_last", "steps"),
    [("cpo", "false", 4), ("mle", "false", 4), ("cpo", "true", 2)],
)
def test_whole_epochs_are_the_same_with_accumulation_and_in_two_processes(
    objective: str, drop_last: str, steps: int, reference: Path, odd_set: Path, tmp_path: Path
) -> None:
    """Two epochs of 13 groups in steps of 12: the last one has one group, so most micro-batches have none."""
    options = [
        "--objective",
        objective,
        "--num_train_epochs",
        "2",
        "--dataloader_drop_last",
        drop_last,
        "--optim",
        "sgd",
    ]
    options += ["--lr_scheduler_type", "constant", "--save_strategy", "no", "--max_grad_norm", "0"]
    options += ["--learning_rate", "1e-2", "--logging_steps", "1", "--row_tokens", "40"]
    ways = {"alone": (1, 12, 1), "accumulated": (1, 12 // 4, 4), "together": (2, 12, 1), "both": (2, 12 // 3, 3)}
    losses = {}
    for name, (processes, batch, accumulation) in ways.items():
        words = cli(reference, odd_set, tmp_path / name, *options, "--gradient_accumulation_steps", str(accumulation))
        words[words.index("--per_device_train_batch_size") + 1] = str(batch)
        train(processes, words)
        logs = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [log["loss"] for log in logs if "loss" in log]
    assert len(losses["alone"]) == steps
    for name in ("accumulated", "together", "both"):
        assert losses[name] == pytest.approx(losses["alone"], abs=2e-4), name
        assert difference(reference, tmp_path / "alone", tmp_path / name) < 1e-4, name


def test_accelerate_launches_the_recipe(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    """The paper's batch is shared by the two processes that it starts."""
    words = cli(reference, negative_set, tmp_path / "out", "--max_steps", "1", "--save_strategy", "no")
    place = words.index("--per_device_train_batch_size")
    del words[place : place + 2]
    launcher = ["--config_file", "recipes/accelerate/ddp.yaml", "--num_processes", "2", "--mixed_precision", "no"]
    launcher += ["--main_process_port", free_port(), "-m", "trainer.run"]
    # The recipe is for GPUs: the environment, not accelerate's --cpu, which starts a single process.
    done = fork_command(
        "accelerate.commands.launch", *launcher, *words, "--ddp_backend", "gloo", env={"ACCELERATE_USE_CPU": "true"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"model: {tmp_path / 'out'}") == 1
    assert json.loads((tmp_path / "out" / "trainer_job.json").read_text())["batch_size"] == 64
    assert "--num_processes N" in (ROOT / "recipes/accelerate/ddp.yaml").read_text().splitlines()[0]


def test_sigterm_to_one_process_stops_both_with_a_checkpoint_to_go_on_from(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    options = ["--max_steps", "40", "--save_strategy", "no", "--logging_steps", "1"]
    train(2, cli(reference, negative_set, tmp_path / "whole", *options))
    words = cli(reference, negative_set, tmp_path / "cut", *options)
    words[words.index("--per_device_train_batch_size") + 1] = "4"
    two = TwoProcesses.start(main, [*words, "--ddp_backend", "gloo"])
    metrics = tmp_path / "cut" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert all(process.is_alive() for process in two.processes)
        time.sleep(0.01)
    two.processes[1].terminate()
    outputs = two.finish(143)
    assert all("SIGTERM: stopped at step" in output for output in outputs)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    TwoProcesses.start(main, [*words, "--ddp_backend", "gloo", "--resume_from_checkpoint", "true"]).finish()
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


def main_with_fault(words: list[str]) -> int:
    """In the second process the loss of step 3 is not a number."""
    share = ContrastiveTrainer._share

    def fault_stub(self: ContrastiveTrainer, *arguments: Any) -> torch.Tensor:
        faulty = self.accelerator.process_index == 1 and self.state.global_step == 2
        return share(self, *arguments) * (torch.nan if faulty else 1.0)

    ContrastiveTrainer._share = fault_stub  # type: ignore[method-assign]
    return main(words)


def test_a_loss_or_gradient_that_is_not_finite_in_one_process_stops_both_and_that_process_names_its_groups(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    options = ["--max_steps", "5", "--save_strategy", "no", "--logging_steps", "1", "--ddp_backend", "gloo"]
    words = cli(reference, negative_set, tmp_path / "out", *options)
    outputs = TwoProcesses.start(main_with_fault, words).finish(2)
    assert "a gradient of step 3 is not finite; stopped before the optimiser step" in outputs[0]
    assert "The loss of these is not finite" not in outputs[0]
    assert "the loss (nan) of step 3 is not finite; stopped before the optimiser step" in outputs[1]
    ids = [g.id for g in NegativeSet(str(negative_set)).groups()]
    blamed = outputs[1].split("The loss of these is not finite: ")[1].split(". Groups of the step")[0]
    assert len(blamed.split(", ")) == 8
    assert set(blamed.split(", ")) < set(ids)
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 2
