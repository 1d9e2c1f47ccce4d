"""Early stopping on held-out groups: when it stops, which model is kept, and what a resumed run makes of it."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from transformers import TrainerState, TrainingArguments

from data.command.errors import UserError
from tests.support.tiny import make_negative_set
from tests.support.training import cli, metrics
from trainer.arguments import parse
from trainer.monitor.kept_model import describe_kept
from trainer.run import main

pytestmark = pytest.mark.seconds

# The learning rate is so large that held-out groups get worse from the second look on.
WATCHED = [
    *("--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1", "--max_steps", "9", "--logging_steps", "1"),
    *("--load_best_model_at_end", "true", "--early_stopping_patience", "2", "--report_to", "none"),
    *("--learning_rate", "0.1", "--lr_scheduler_type", "constant"),
]


@pytest.fixture(scope="module")
def halves(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "halves"
    make_negative_set(out, reference, num_groups=24, num_negatives=2, split="all")
    return out


@pytest.fixture(scope="module")
def whole(reference: Path, halves: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped early."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert main(cli(reference, halves, output, *WATCHED)) == 0
    return output


def held_out(output: Path) -> list[float]:
    return [line["eval_loss"] for line in metrics(output) if "eval_loss" in line]


def best(output: Path) -> Path:
    losses = held_out(output)
    return output / f"checkpoint-{losses.index(min(losses)) + 1}"


def test_it_stops_when_the_best_is_so_many_evaluations_old_and_keeps_the_best(whole: Path) -> None:
    losses = held_out(whole)
    assert len(losses) < 9
    assert losses.index(min(losses)) == len(losses) - 3
    final, kept = (load_file(path / "model.safetensors") for path in (whole, best(whole)))
    assert all((final[name] == kept[name]).all() for name in final)


def test_the_command_says_it_at_its_end(
    reference: Path, halves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(cli(reference, halves, tmp_path / "out", *WATCHED)) == 0
    losses = held_out(tmp_path / "out")
    step = losses.index(min(losses)) + 1
    said = f"stopped early at step {step + 2}; the model is that of step {step}: eval_loss "
    assert [said in line for line in capsys.readouterr().err.splitlines()].count(True) == 1


def test_the_end_says_when_it_stopped_and_which_model_is_kept() -> None:
    watched = {"eval_loss": 1.31, "eval_start/contrast": 1.1, "step": 10}
    args = TrainingArguments(
        "o", eval_strategy="steps", save_strategy="steps", load_best_model_at_end=True, use_cpu=True
    )
    state = TrainerState(
        global_step=40, max_steps=60, best_metric=1.31, best_global_step=10, best_model_checkpoint="c",
        log_history=[{"step": 10, "loss": 1.0}, watched],
    )  # fmt: skip
    kept = "stopped early at step 40; the model is that of step 10: eval_loss 1.31 (start 1.10)"
    assert describe_kept(args, state) == f"{kept}; the reference, which it began as, is better"
    watched["eval_start/contrast"] = 1.4
    state.max_steps = 40
    assert describe_kept(args, state) == "the model is that of step 10: eval_loss 1.31 (start 1.40)"
    del watched["eval_start/contrast"]  # of mle
    assert describe_kept(args, state) == "the model is that of step 10: eval_loss 1.31"
    args.metric_for_best_model = "rewards/top1"
    assert describe_kept(args, state) == "the model is that of step 10: eval_rewards/top1 1.31"
    state.best_model_checkpoint = None
    gone = "the best model, of step 10, is not there any more: the model is that of step 40"
    assert describe_kept(args, state) == gone
    args.load_best_model_at_end = False
    assert describe_kept(args, state) == ""


def test_a_run_that_was_stopped_early_is_finished(whole: Path, reference: Path, halves: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert main(cli(reference, halves, whole, *WATCHED, "--resume_from_checkpoint", "true")) == 0
    after = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert {path for path in before if before[path] != after.get(path)} <= {
        path for path in before if ".claim" in path.parts
    }


def test_resumed_before_the_end_it_goes_on_counting(whole: Path, reference: Path, halves: Path, tmp_path: Path) -> None:
    """At the last checkpoint but one, the start, one evaluation in a row was no better."""
    output = tmp_path / "parts"
    shutil.copytree(whole, output)
    shutil.rmtree(output / f"checkpoint-{len(held_out(whole))}")
    for name in ("model.safetensors", "trainer_state.json"):
        (output / name).unlink()
    assert main(cli(reference, halves, output, *WATCHED, "--resume_from_checkpoint", "true")) == 0
    assert held_out(output) == pytest.approx(held_out(whole))
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_where_the_last_model_was_not_saved_a_resumed_run_trains_no_step_more(
    whole: Path, reference: Path, halves: Path, tmp_path: Path
) -> None:
    output = tmp_path / "unsaved"
    shutil.copytree(whole, output)
    for name in ("model.safetensors", "trainer_state.json"):
        (output / name).unlink()
    assert main(cli(reference, halves, output, *WATCHED, "--resume_from_checkpoint", "true")) == 0
    assert held_out(output) == held_out(whole)
    assert not (output / f"checkpoint-{len(held_out(whole)) + 1}").exists()
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_another_patience_is_another_job(
    whole: Path, reference: Path, halves: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = cli(reference, halves, whole, *WATCHED, "--resume_from_checkpoint", "true")
    words[words.index("--early_stopping_patience") + 1] = "3"
    assert main(words) == 2
    assert "its early_stopping.early_stopping_patience is 2, this job's is 3" in capsys.readouterr().err
    record = json.loads((whole / "trainer_job.json").read_text())["early_stopping"]
    assert (record["metric_for_best_model"], record["eval_steps"], record["eval_strategy"]) == ("loss", 1, "steps")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "--early_stopping_patience does nothing without --eval_strategy. Add --eval_strategy steps."),
        (
            ["--eval_strategy", "steps"],
            "Add --load_best_model_at_end true --save_steps 10, so that the best one is kept.",
        ),
        (
            ["--eval_strategy", "epoch"],
            "Add --load_best_model_at_end true --save_strategy epoch, so that the best one is kept.",
        ),
        (
            ["--eval_strategy", "steps", "--eval_steps", "20", "--load_best_model_at_end", "true"],
            "and --save_steps 500 saves fewer than --eval_steps 20 looks at. Give --save_steps 20, or "
            "--save_strategy best.",
        ),
    ],
)
def test_it_needs_held_out_groups_and_the_best_model(more: list[str], said: str) -> None:
    words = ["--shards", "s", "--model", "m", "--output_dir", "o", "--use_cpu", "--early_stopping_patience", "2"]
    with pytest.raises(UserError) as caught:
        parse([*words, *more])
    assert str(caught.value).endswith(said)
