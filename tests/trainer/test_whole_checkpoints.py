"""A checkpoint is whole and of this job, or it is refused and named; the newest whole one is taken."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import checkpoint as distributed

from data.command.errors import UserError
from tests.support.training import cli, metrics
from trainer.output import JOB_FILE, STATE_FILE, difference
from trainer.resume import JobStamp, Needs, check_job, find_checkpoint, problem
from trainer.run import main

pytestmark = pytest.mark.seconds

ARCHIVES = "optimizer.pt", "scheduler.pt", "rng_state.pth"
OPTIONS = ["--max_steps", "4", "--save_steps", "2", "--logging_steps", "1", "--report_to", "none"]


@pytest.fixture(scope="module")
def finished(reference: Path, negative_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with checkpoints 2 and 4."""
    out = tmp_path_factory.mktemp("finished") / "out"
    assert main(cli(reference, negative_set, out, *OPTIONS)) == 0
    return out


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """A copy of it as it was before its end."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for name in ("model.safetensors", STATE_FILE):
        (out / name).unlink()
    return out


def put_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change_inside(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"\x80\x02") + 2] ^= 0xFF  # behind the header of the pickle
    path.write_bytes(bytes(content))


def forget_the_step(path: Path) -> None:
    path.write_text(json.dumps({"epoch": 1.0}))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("global_step", -1, "in trainer_state.json global_step is -1, not a whole number from 0 on"),
        ("log_history", [1], "in trainer_state.json log_history[0] is 1, not an object"),
        ("epoch", "a", 'in trainer_state.json epoch is "a", not a number'),
        ("total_flos", None, "in trainer_state.json total_flos is null, not a number"),
        ("stateful_callbacks", None, "in trainer_state.json stateful_callbacks is null, not an object"),
        ("stateful_callbacks", {}, "in trainer_state.json stateful_callbacks.TrainerControl is missing"),
        (
            "stateful_callbacks",
            {"TrainerControl": {}, "JobStamp": 1},
            "in trainer_state.json stateful_callbacks.JobStamp is 1, not an object",
        ),
    ],
)
def test_a_state_that_no_run_wrote_is_named(key: str, value: Any, said: str, stopped: Path) -> None:
    path = stopped / "checkpoint-4" / STATE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert problem(stopped / "checkpoint-4", Needs()) == f"is damaged: {said}"


@pytest.mark.parametrize("content", [b"", b"[" * 100_000], ids=["empty", "deep"])
def test_a_record_that_is_damaged_is_written_anew_where_a_checkpoint_says_the_job(
    content: bytes,
    reference: Path,
    negative_set: Path,
    stopped: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = (stopped / JOB_FILE).read_bytes()
    (stopped / JOB_FILE).write_bytes(content)
    words = [*cli(reference, negative_set, stopped, *OPTIONS), "--resume_from_checkpoint", "true"]
    assert main([*words, "--max_grad_norm", "0.5"]) == 2
    assert "is of another job: its max_grad_norm is 1.0, this job's is 0.5" in capsys.readouterr().err
    assert main(words[:-2]) == 2
    assert f"'{stopped / JOB_FILE}' is damaged" in capsys.readouterr().err
    assert main(words) == 0
    assert f"{JOB_FILE} in {stopped} is damaged and is written anew" in caplog.text
    assert (stopped / JOB_FILE).read_bytes() == job


def test_what_a_run_saves_is_whole(finished: Path) -> None:
    assert problem(finished / "checkpoint-4", Needs()) is None
    assert find_checkpoint("true", finished, Needs()) == str(finished / "checkpoint-4")


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("optimizer.pt", Path.unlink, "is damaged: optimizer.pt is missing"),
        ("scheduler.pt", Path.unlink, "is damaged: scheduler.pt is missing"),
        ("rng_state.pth", Path.unlink, "is damaged: rng_state.pth is missing"),
        ("model.safetensors", Path.unlink, "is damaged: model.safetensors is missing"),
        *((name, halve, f"is damaged: {name} ") for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")),
        ("model.safetensors", halve, "is damaged: model.safetensors has "),
        (STATE_FILE, halve, f"is damaged: {STATE_FILE} is cut short"),
        (STATE_FILE, forget_the_step, f"is damaged: in {STATE_FILE} global_step is missing"),
        *((name, change_inside, f"is damaged: {name} is not what was saved") for name in ARCHIVES),
        ("config.json", halve, "is damaged: config.json is cut short"),
        ("config.json", lambda path: os.truncate(path, 0), "is damaged: config.json is empty"),
        *(
            (name, lambda path: os.truncate(path, 0), f"is damaged: {name} is empty")
            for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", STATE_FILE)
        ),
        *(
            (name, put_a_directory, f"is damaged: {name} is a directory")
            for name in ("optimizer.pt", "scheduler.pt", "model.safetensors", "config.json")
        ),
    ],
)
def test_each_file_that_is_lacking_cut_short_or_empty_is_named(
    name: str, damage: Callable[[Path], Any], said: str, stopped: Path
) -> None:
    damage(stopped / "checkpoint-4" / name)
    found = problem(stopped / "checkpoint-4", Needs())
    assert found is not None
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (Needs(processes=2), "was saved by 1 process, and this run has 2"),
        (Needs(adapter=True), "is damaged: adapter_model.safetensors is missing"),
        (Needs(fsdp=True), "is damaged: pytorch_model_fsdp.bin is missing"),
        (Needs(scaled=True), "is damaged: scaler.pt is missing"),
    ],
)
def test_a_checkpoint_of_another_kind_of_run_is_refused(needs: Needs, said: str, stopped: Path) -> None:
    assert problem(stopped / "checkpoint-4", needs) == said


def test_shards_of_fsdp_are_compared_with_what_their_metadata_says(stopped: Path) -> None:
    checkpoint, needs = stopped / "checkpoint-4", Needs(fsdp=True)
    folders = [checkpoint / name for name in ("pytorch_model_fsdp_0", "optimizer_0")]
    for folder in folders:
        folder.mkdir()
        (folder / "__0_0.distcp").touch()
        assert problem(checkpoint, needs) == "is damaged: pytorch_model_fsdp_0 has no .metadata that can be read"
    for folder in folders:
        distributed.save({"weight": torch.ones(9)}, checkpoint_id=folder, no_dist=True)
    assert problem(checkpoint, needs) is None
    shard = folders[1] / "__0_0.distcp"
    size = shard.stat().st_size
    halve(shard)
    expected = f"is damaged: optimizer_0 holds __0_0.distcp with {size // 2} bytes instead of {size}"
    assert problem(checkpoint, needs) == expected
    shard.unlink()
    assert problem(checkpoint, needs) == "is damaged: optimizer_0 lacks __0_0.distcp"
    halve(folders[0] / ".metadata")
    assert problem(checkpoint, needs) == "is damaged: pytorch_model_fsdp_0 has no .metadata that can be read"


def test_a_checkpoint_of_more_processes_names_both_numbers(stopped: Path) -> None:
    random = stopped / "checkpoint-4" / "rng_state.pth"
    shutil.copy(random, random.with_name("rng_state_1.pth"))
    random.rename(random.with_name("rng_state_0.pth"))
    assert problem(stopped / "checkpoint-4", Needs(processes=2)) is None
    assert problem(stopped / "checkpoint-4", Needs()) == "was saved by 2 processes, and this run has 1"


def test_the_newest_whole_checkpoint_is_taken_with_a_warning_and_gives_the_same_end(
    reference: Path, negative_set: Path, finished: Path, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    halve(stopped / "checkpoint-4" / "optimizer.pt")
    assert main([*cli(reference, negative_set, stopped, *OPTIONS), "--resume_from_checkpoint", "true"]) == 0
    assert "checkpoint-4 is damaged: optimizer.pt is cut short: going on from checkpoint-2 instead" in caplog.text
    expected, found = (load_file(out / "model.safetensors") for out in (finished, stopped))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    rates = [[line["learning_rate"] for line in metrics(out) if "loss" in line] for out in (finished, stopped)]
    assert rates[0] == rates[1] == [1e-3, 7.5e-4, 5e-4, 2.5e-4]


@pytest.mark.parametrize("objective", ["cpo-rank", "dpo"])
def test_a_finished_run_is_not_trained_any_further(
    objective: str, reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers trains one more step from a checkpoint of the last one that lies in mid-epoch."""
    caplog.set_level("INFO")
    out = tmp_path / "out"
    words = [*cli(reference, negative_set, out, *OPTIONS, "--lr_scheduler_type", "constant"), "--objective", objective]
    assert main(words) == 0
    weights, logged = (out / "model.safetensors").read_bytes(), metrics(out)
    assert json.loads((out / STATE_FILE).read_text())["epoch"] % 1 > 0
    for damage, said in (
        (lambda _: None, "this job is finished: its last step is checkpoint-4's"),
        (Path.unlink, "all 4 steps are done already"),  # killed before the model was saved
        (halve, "all 4 steps are done already"),
    ):
        damage(out / "model.safetensors")
        assert main([*words, "--resume_from_checkpoint", "true"]) == 0
        assert said in caplog.text
        assert (out / "model.safetensors").read_bytes() == weights
        steps = [[line for line in lines if "loss" in line] for lines in (logged, metrics(out))]
        assert steps[0] == steps[1]
        assert metrics(out) == logged or damage in (Path.unlink, halve)
        assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
        assert "missing keys" not in caplog.text  # of a tied head, which is saved once
        caplog.clear()


def test_a_checkpoint_whose_save_was_interrupted_is_passed_over_with_a_warning(
    finished: Path, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (stopped / "checkpoint-4" / STATE_FILE).unlink()
    assert find_checkpoint("true", stopped, Needs()) == str(stopped / "checkpoint-2")
    assert "checkpoint-4 was not saved to its end, it has no trainer_state.json: passed over" in caplog.text
    caplog.clear()
    assert find_checkpoint("true", finished, Needs()) == str(finished / "checkpoint-4")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--output_dir", "s3://bucket/run"), "--output_dir 's3://bucket/run' is a URL. Give a local directory."),
        (
            ("--use", "an=1:rnd"),
            "':rnd' is no way to choose. Behind a number can stand :random, :hard,",
        ),
        (("--deepspeed", "x.json"), "DeepSpeed is not supported: its engine counts forward passes as steps"),
        (("--learning_rate", "-1"), "Invalid learning rate: -1.0"),
    ],
)
def test_a_run_that_is_refused_leaves_no_folder(
    more: tuple[str, str], said: str, reference: Path, negative_set: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*cli(reference, negative_set, tmp_path / "new/a/b"), *more]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_checkpoints_are_models_alone_is_not_gone_on_with(
    reference: Path, negative_set: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adam and the schedule would start again, silently."""
    for step in (2, 4):
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (stopped / f"checkpoint-{step}" / name).unlink()
    words = [*cli(reference, negative_set, stopped, *OPTIONS), "--resume_from_checkpoint"]
    assert main([*words, "true"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"error: no checkpoint in '{stopped}' can be gone on from: checkpoint-4 was saved with --save_only_model, or "
        "its optimiser was dropped: it lacks optimizer.pt, scheduler.pt and rng_state.pth, so it is a --model to start "
        "from, not a run to go on with. Restore it, or choose another --output_dir to train again."
    )
    assert main([*words, str(stopped / "checkpoint-2")]) == 2
    assert "was saved with --save_only_model" in capsys.readouterr().err


def test_a_damaged_checkpoint_given_by_path_is_refused_and_the_whole_one_beside_it_offered(stopped: Path) -> None:
    halve(stopped / "checkpoint-4" / "scheduler.pt")
    with pytest.raises(UserError, match=r"scheduler.pt is cut short. The newest whole one beside it is checkpoint-2."):
        find_checkpoint(str(stopped / "checkpoint-4"), stopped, Needs())
    shutil.rmtree(stopped / "checkpoint-2")
    with pytest.raises(UserError, match="Give a whole one"):
        find_checkpoint(str(stopped / "checkpoint-4"), stopped, Needs())


def test_a_checkpoint_says_which_job_it_is_of(finished: Path) -> None:
    state = json.loads((finished / "checkpoint-4" / STATE_FILE).read_text())
    job = json.loads((finished / JOB_FILE).read_text())
    assert state["stateful_callbacks"]["JobStamp"]["attributes"]["job"] == job
    check_job(str(finished / "checkpoint-4"), job)


def test_another_jobs_checkpoint_given_by_path_is_refused_and_nothing_written(
    reference: Path, negative_set: Path, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.move(stopped / "checkpoint-2", tmp_path / "elsewhere"))
    words = [*cli(reference, negative_set, tmp_path / "new", *OPTIONS), "--resume_from_checkpoint", str(moved)]
    assert main([*words, "--max_grad_norm", "0.5"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"error: checkpoint '{moved}' is of another job: its max_grad_norm is 1.0, this job's is 0.5. Go on with that "
        "job's options, or start from it as --model."
    )
    assert not (tmp_path / "new").exists()
    assert main(words) == 0
    assert [line["step"] for line in metrics(tmp_path / "new") if "loss" in line] == [1, 2, 3, 4]


def test_a_checkpoint_from_before_it_said_its_job_is_known_by_the_record_beside_it(stopped: Path) -> None:
    job = json.loads((stopped / JOB_FILE).read_text())
    path = stopped / "checkpoint-2" / STATE_FILE
    state = json.loads(path.read_text())
    del state["stateful_callbacks"][JobStamp.__name__]
    path.write_text(json.dumps(state))
    check_job(str(stopped / "checkpoint-2"), job)
    with pytest.raises(UserError, match="its seed is 42, this job's is 7"):
        check_job(str(stopped / "checkpoint-2"), {**job, "training": {**job["training"], "seed": 7}})
    (stopped / JOB_FILE).unlink()
    with pytest.raises(UserError, match="does not say which job it is of"):
        check_job(str(stopped / "checkpoint-2"), job)


def test_a_checkpoint_whose_state_is_of_another_step_is_damaged(stopped: Path, tmp_path: Path) -> None:
    state = json.loads((stopped / "checkpoint-4" / STATE_FILE).read_text())
    (stopped / "checkpoint-4" / STATE_FILE).write_text(json.dumps({**state, "global_step": 3}))
    found = problem(stopped / "checkpoint-4", Needs())
    assert found == f"is damaged: its {STATE_FILE} is of step 3"
    (stopped / "checkpoint-4").rename(stopped / "mine")
    assert problem(stopped / "mine", Needs()) is None


def test_a_record_from_before_an_option_is_of_the_job_that_does_not_give_it(finished: Path) -> None:
    job = json.loads((finished / JOB_FILE).read_text())
    older = {name: value for name, value in job.items() if name != "loss_normalize"}
    assert job["loss_normalize"] is None
    assert difference(older, job) is None
    assert str(difference(older, {**job, "loss_normalize": "length"})) == "('loss_normalize', (missing), 'length')"
    assert difference({**job, "loss_normalize": "length"}, job) == ("loss_normalize", "length", None)
