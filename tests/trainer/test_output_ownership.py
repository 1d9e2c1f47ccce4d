"""Two trainers on one --output_dir: one trains, the other is refused and leaves everything as it is."""

import os
import signal
import time
from pathlib import Path

import pytest

from data.claim import Claim
from data.command.errors import UserError
from data.storage import Folder
from tests.support.commands import ForkedCommand
from tests.support.owners import die
from tests.support.training import cli
from tests.support.written import all_files
from trainer.monitor.ownership import StopIfTakenOver
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
    for due in ("should_log", "should_save"):
        with pytest.raises(UserError, match="another run has taken over"):
            callback.on_step_end(arguments, state, TrainerControl(**{due: True}))
    successor.end()
