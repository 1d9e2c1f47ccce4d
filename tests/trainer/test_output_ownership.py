"""Two trainers on one --output_dir: one trains, the other is refused and leaves everything as it is."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from data.claim import Claim
from data.command.errors import UserError
from data.storage import Folder
from tests.support.commands import ForkedCommand
from tests.support.owners import die
from tests.support.tiny import make_negative_set
from tests.support.training import cli
from tests.support.written import all_files
from trainer import run
from trainer.attempt import Attempt
from trainer.monitor.ownership import StopIfTakenOver
from trainer.monitor.safety import CheckpointOnSigterm
from trainer.run import main

pytestmark = pytest.mark.seconds


def test_a_second_trainer_is_refused_while_the_first_trains(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = cli(reference, negative_set, out, "--max_steps", "2000", "--save_strategy", "no", "--logging_steps", "1")
    first = ForkedCommand.start("trainer.run", *words)
    try:
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").stat().st_size:
            assert first.poll() is None, first.stderr
            time.sleep(0.05)
        os.kill(first.pid, signal.SIGSTOP)  # so that its files stand still while we look
        before = all_files(out)
        for more in ([], ["--resume_from_checkpoint", "true"]):
            assert main([*words, *more]) == 2
            assert f"'{out}' is in use by another run (process {first.pid} on " in capsys.readouterr().err
        assert all_files(out) == before
    finally:
        first.kill()
    assert main([*words, "--max_steps", "1"]) == 2  # the first one is dead: now its directory is looked into
    assert "already holds another job: its max_steps is 2000, this job's is 1" in capsys.readouterr().err
    assert not (out / ".claim").exists()


def test_a_refused_run_leaves_no_directory(reference: Path, tmp_path: Path) -> None:
    assert main(cli(reference, tmp_path / "no-set", tmp_path / "out")) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_taken_over_from_stops_before_it_writes(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    claim = Claim.take(Folder(str(tmp_path / "out")))
    arguments, state = TrainingArguments(str(tmp_path / "out"), use_cpu=True), TrainerState()
    callback = StopIfTakenOver(claim)
    callback.on_step_end(arguments, state, TrainerControl(should_save=True))
    die(claim)
    successor = Claim.take(claim.folder)
    callback.on_step_end(arguments, state, TrainerControl())
    for due in ("should_log", "should_save", "should_evaluate"):
        for event in (callback.on_step_end, callback.on_epoch_end):
            with pytest.raises(UserError, match="another run has taken over"):
                event(arguments, state, TrainerControl(**{due: True}))
    for event in (callback.on_train_begin, callback.on_log, callback.on_save, callback.on_train_end):
        with pytest.raises(UserError, match="another run has taken over"):
            event(arguments, state, TrainerControl())
    successor.end()


@pytest.fixture
def take_over(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Claim]:
    """Takes the directory of the trainer that runs in this process over, as a run on another machine would."""
    claims: list[Any] = []
    train = run._train

    def remembered(*parts: Any) -> None:
        claims.append(parts[-1])
        train(*parts)

    monkeypatch.setattr(run, "_train", remembered)

    def take() -> Claim:
        die(claims[-1])
        return Claim.take(claims[-1].folder)

    return take


@pytest.mark.parametrize(
    "more",
    [
        ["--save_strategy", "epoch", "--logging_strategy", "no"],
        ["--logging_strategy", "epoch", "--save_strategy", "no"],
        ["--eval_strategy", "epoch", "--logging_strategy", "no", "--save_strategy", "no"],
        ["--eval_strategy", "steps", "--eval_steps", "2", "--logging_steps", "9", "--save_strategy", "no"],
        ["--eval_strategy", "epoch", "--save_strategy", "best", "--metric_for_best_model", "loss"],
    ],
    ids=["save at epoch", "log at epoch", "evaluate at epoch", "evaluate at step", "best"],
)
def test_a_straggler_writes_nothing_at_epoch_ends_and_evaluations(
    more: list[str],
    reference: Path,
    tmp_path: Path,
    take_over: Callable[[], Claim],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_negative_set(tmp_path / "halves", reference, num_groups=32, num_negatives=2, split="all")
    out, before, successors = tmp_path / "out", dict[str, bytes](), list[Claim]()
    steps = CheckpointOnSigterm.on_step_end

    def lose_the_directory(self: Any, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        if state.global_step == 1:
            successors.append(take_over())
            before.update(all_files(out))
        steps(self, args, state, *rest, **more)

    monkeypatch.setattr(CheckpointOnSigterm, "on_step_end", lose_the_directory)
    words = cli(reference, tmp_path / "halves", out, "--num_train_epochs", "2", *more)
    assert main(words) == 2
    assert f"another run has taken over '{out}'" in capsys.readouterr().err
    assert all_files(out) == before
    successors[0].end()


def test_a_straggler_that_fails_before_its_first_step_leaves_its_successors_files(
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    take_over: Callable[[], Claim],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from trainer.trainer import ContrastiveTrainer

    out, before, successors = tmp_path / "out", dict[str, bytes](), list[Claim]()

    def out_of_memory(*_: Any, **__: Any) -> None:
        successors.append(take_over())
        (out / "checkpoint-7").mkdir()
        (out / "checkpoint-7" / "model.safetensors").write_bytes(b"the successor's")
        before.update(all_files(out))
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(ContrastiveTrainer, "training_step", out_of_memory)
    assert main(cli(reference, negative_set, out)) == 2
    assert "CUDA out of memory" in capsys.readouterr().err
    assert {"trainer_job.json", "metrics.jsonl", "checkpoint-7/model.safetensors"} <= before.keys()
    assert all_files(out) == before
    successors[0].end()


@pytest.mark.parametrize("lost", [UserError("cannot list"), False])
def test_a_run_gives_up_its_files_one_by_one_while_it_owns_them(lost: Any, tmp_path: Path) -> None:
    claim = Mock()
    claim.holds.side_effect = [True, lost]
    attempt = Attempt(tmp_path, "m", claim)
    attempt.writes = True
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"cannot set up the training of model 'm' .* full"):
        attempt.__exit__(OSError, OSError("full"), None)
    assert len(list(tmp_path.iterdir())) == 2
