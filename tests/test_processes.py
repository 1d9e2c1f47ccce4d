"""Several processes train as one does: the same groups per step, exact resume, and they stop together."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import TwoProcesses
from tests.test_trainer import cli
from trainer.run import main


def train(processes: int, words: list[str]) -> None:
    """The same command in one process or two, with as many groups in each step."""
    if processes == 1:
        assert main(words) == 0
    else:
        words = [*words, "--ddp_backend", "gloo"]
        place = words.index("--per_device_train_batch_size") + 1
        words[place] = str(int(words[place]) // processes)
        TwoProcesses.start(main, words).finish()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "options",
    [("--objective", "cpo-rank", "--use", "an=2:random"), ("--objective", "pss"), ("--objective", "dpo")],
    ids=["random", "pss", "dpo"],
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


def test_held_out_groups_fewer_than_processes_are_averaged_as_in_one(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """Three groups, two per process and pass, then one: the second process has one, then none at all."""
    found = {}
    for processes, groups in ((1, 3), (2, 3), (1, 1), (2, 1)):
        out = tmp_path / f"{processes}-{groups}"
        words = cli(reference, negative_set, out, "--max_steps", "1", "--save_strategy", "no", "--report_to", "none")
        words += ["--eval_strategy", "steps", "--eval_steps", "1", "--per_device_eval_batch_size", "2"]
        train(processes, [*words, "--eval_split", "train", "--max_eval_samples", str(groups)])
        logs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        (found[processes, groups],) = (log for log in logs if "eval_loss" in log)
    for groups in (3, 1):
        assert found[1, groups].keys() == found[2, groups].keys()
        for name, value in found[1, groups].items():
            if name != "eval_runtime":
                assert found[2, groups][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
