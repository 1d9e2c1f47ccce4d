"""Stopping and going on gives what never stopping gives; the same seed gives the same bits."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.commands import ForkedCommand
from tests.support.training import cli, metrics
from trainer.resume import Needs, find_checkpoint, resume_from
from trainer.run import main

pytestmark = pytest.mark.seconds


def test_resuming_mid_epoch_gives_the_same_parameters_as_never_stopping(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = ["--max_steps", "9", "--save_steps", "4"]
    assert main(cli(reference, negative_set, whole, *steps)) == 0
    assert main(cli(reference, negative_set, parts, *steps)) == 0
    # What an interrupted run leaves: its checkpoints, no final model. Six steps are an epoch; it stops at four.
    (parts / "model.safetensors").unlink()
    shutil.rmtree(parts / "checkpoint-9")
    shutil.rmtree(parts / "checkpoint-8")
    assert main(cli(reference, negative_set, parts, *steps, "--resume_from_checkpoint", "true")) == 0
    expected, found = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    start = load_file(reference / "model.safetensors")
    assert any(not torch.equal(start[name], found[name]) for name in found)


@pytest.mark.parametrize("persistent", ["false", "true"])
def test_workers_of_the_data_loader_give_the_same_bits(
    persistent: str, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """Over two epochs of three steps: a worker that stays for the second one draws other negatives in it too."""
    options = ["--use", "an=2:random", "--max_steps", "6", "--save_strategy", "no", "--logging_steps", "1"]
    weights = []
    for workers in ("0", "2"):
        words = cli(reference, negative_set, tmp_path / workers, *options, "--dataloader_num_workers", workers)
        words[words.index("--per_device_train_batch_size") + 1] = "20"
        if workers != "0":
            words += ["--dataloader_persistent_workers", persistent]
        assert main(words) == 0
        weights.append(load_file(tmp_path / workers / "model.safetensors"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    "options",
    [("--objective", "cpo-rank", "--use", "an=2:random"), ("--objective", "pss"), ("--objective", "dpo")],
    ids=["cpo-rank", "pss", "dpo"],
)
def test_the_same_seed_gives_the_same_bits_and_another_one_others(
    options: tuple[str, ...], reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    weights = {}
    for name, seed in (("once", "7"), ("again", "7"), ("other", "8")):
        more = ["--max_steps", "7", "--save_strategy", "no", "--seed", seed]
        assert main(cli(reference, negative_set, tmp_path / name, *more, *options)) == 0
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert weights["once"] == weights["again"]
    assert weights["once"] != weights["other"]


def test_an_interrupted_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """An interrupted checkpoint lacks its last file. Where there is no other the run starts from step 0."""
    out = tmp_path / "out"
    for name in ("checkpoint-10", "checkpoint-12"):
        (out / name).mkdir(parents=True)
    assert find_checkpoint("true", out, Needs()) is None
    assert find_checkpoint("true", tmp_path / "new", Needs()) is None
    assert resume_from("False") is None
    assert resume_from(True) == "true"


@pytest.mark.parametrize("more", [[], ["--save_only_model", "true"]], ids=["", "save_only_model"])
def test_sigterm_saves_a_checkpoint_and_resuming_gives_what_never_stopping_gives(
    more: list[str], reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    options = ["--max_steps", "30", "--save_strategy", "no", "--logging_steps", "1", *more]
    assert main(cli(reference, negative_set, tmp_path / "whole", *options)) == 0
    words = cli(reference, negative_set, tmp_path / "cut", *options)
    process = ForkedCommand.start("trainer.run", *words)
    logs = tmp_path / "cut" / "metrics.jsonl"
    while not (logs.exists() and logs.read_text().count("\n") >= 3):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=120) == 143, process.stderr
    assert "SIGTERM: stopped at step" in process.stderr
    assert main([*words, "--resume_from_checkpoint", "true"]) == 0
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    losses = [[json.loads(line)["loss"] for line in part if '"loss"' in line] for part in lines]
    assert losses[0] == losses[1]


def test_a_set_that_changed_between_stop_and_resume_is_refused(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, out = tmp_path / "set", tmp_path / "out"
    shutil.copytree(negative_set, copy)
    words = cli(reference, copy, out, "--max_steps", "2", "--save_steps", "1")
    assert main(words) == 0
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main([*words, "--resume_from_checkpoint", "true"]) == 2
    assert "already holds another job: its data.shards" in capsys.readouterr().err


@pytest.mark.parametrize("objective", [[], ["--objective", "dpo", "--use", "an=2"]], ids=["cpo-rank", "dpo"])
def test_the_last_step_of_a_run_is_in_its_metrics_once(
    reference: Path, negative_set: Path, tmp_path: Path, objective: list[str]
) -> None:
    options = ["--max_steps", "5", "--logging_steps", "2", "--save_strategy", "no", "--report_to", "none", *objective]
    assert main(cli(reference, negative_set, tmp_path / "out", *options)) == 0
    assert [line["step"] for line in metrics(tmp_path / "out") if "loss" in line] == [1, 2, 4, 5]
