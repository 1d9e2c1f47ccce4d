"""What can only fail while a run starts or saves is tried first; what fails before the first step leaves nothing."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from data.models import weights_hash
from tests.support.tiny import make_negative_set
from tests.support.training import cli, make_trainer, metrics
from trainer.monitor.watch import Curves
from trainer.rehearsal import rehearse
from trainer.run import main
from trainer.trainer import ContrastiveTrainer

pytestmark = pytest.mark.seconds


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command ends with."""
    capsys.readouterr()
    assert main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lr_scheduler_type", "warmup_stable_decay"], "num_decay_steps"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "min_lr"),
        (["--lr_scheduler_kwargs", '{"nosuch": 1}'], "nosuch"),
        (["--optim", "adamw_8bit"], "bitsandbytes"),
        (["--optim", "adamw_torch", "--optim_args", "nosuch"], "must be written NAME=VALUE"),
        (["--learning_rate", "-1"], "learning rate"),
        (["--dataloader_persistent_workers", "true"], "persistent_workers"),
        (["--use_liger_kernel", "true"], "iger"),
        (["--objective", "dpo", "--use", "an=1", "--use_liger_kernel", "true"], "iger"),
        (["--report_to", "swanlab"], "requires swanlab to be installed"),
        (["--report_to", "nosuch"], "nosuch is not supported"),
        (["--objective", "dpo", "--use", "an=1", "--lr_scheduler_type", "warmup_stable_decay"], "num_decay_steps"),
    ],
)
def test_a_run_that_cannot_start_is_refused_in_one_line_and_leaves_nothing(
    options: list[str],
    said: str,
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(cli(reference, negative_set, tmp_path / "out", *options), capsys)
    assert said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [[], ["--objective", "dpo", "--use", "an=1"]], ids=["groups", "pairs"])
def test_a_generation_config_that_cannot_be_saved_is_refused_before_the_first_step(
    more: list[str], reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Like Llama 2's: a temperature for greedy decoding."""
    model = Path(shutil.copytree(reference, tmp_path / "model"))
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": 0}))
    assert weights_hash(str(model)) == weights_hash(str(reference))
    line = refused(cli(model, negative_set, tmp_path / "out", *more), capsys)
    assert f"generation_config.json of '{model}' contradicts itself" in line
    assert "temperature" in line
    assert "Correct the file" in line
    assert not (tmp_path / "out").exists()


def test_the_metric_of_the_best_model_is_looked_up_before_the_first_step(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_negative_set(tmp_path / "halves", reference, num_groups=12, num_negatives=2, split="all")
    watched = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1", "--max_steps", "1"]
    words = cli(reference, tmp_path / "halves", tmp_path / "out", *watched, "--load_best_model_at_end", "true")
    line = refused([*words, "--metric_for_best_model", "rewards/top2"], capsys)
    assert "--metric_for_best_model 'rewards/top2' is none of the metrics of held-out groups. Did you mean" in line
    assert "rewards/top1" in line
    assert not (tmp_path / "out").exists()
    assert main([*words, "--metric_for_best_model", "eval_rewards/top1"]) == 0


def test_the_metric_of_the_best_model_of_pairs_is_looked_up_before_the_first_step(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_negative_set(tmp_path / "halves", reference, num_groups=12, num_negatives=2, split="all")
    watched = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1", "--max_steps", "1"]
    pairs = ["--objective", "dpo", "--use", "an=1", "--load_best_model_at_end", "true"]
    words = cli(reference, tmp_path / "halves", tmp_path / "out", *watched, *pairs)
    line = refused([*words, "--metric_for_best_model", "rewards/kendall_tau"], capsys)
    assert "--metric_for_best_model 'rewards/kendall_tau' is none of the metrics of held-out groups." in line
    assert "rewards/margins" in line
    assert not (tmp_path / "out").exists()
    assert main([*words, "--metric_for_best_model", "rewards/top1"]) == 0
    held_out = [log for log in metrics(tmp_path / "out") if "eval_loss" in log]
    assert len(held_out) == 1  # a rehearsal's numbers are in no log


def test_a_metric_that_the_first_held_out_group_has_nothing_of_is_known(
    reference: Path, tmp_path: Path, negative_set: Path
) -> None:
    trainer = make_trainer(reference, negative_set, tmp_path, max_steps=1)
    full = trainer.objective.metrics

    class Partial(type(trainer.objective)):  # type: ignore[misc]
        def metrics(self, policy_logps: Any, groups: Any, options: Any) -> dict[str, torch.Tensor]:
            return {**full(policy_logps, groups, options), "rewards/margin/bn": torch.zeros(0)}

    trainer.objective = Partial()
    one = torch.utils.data.Subset(trainer.train_dataset, [0])  # type: ignore[arg-type]
    assert "rewards/margin/bn" in trainer.metric_names(one)
    assert "rewards/margin/bn" not in trainer.measure(one)
    assert {"loss", "rewards/margin"} <= set(trainer.metric_names(one))
    assert not any(name.startswith("loss/") for name in trainer.metric_names(one))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--optim", "sgd", "--optim_args", "momentum=0.9, nosuch=1"],
            ["--optim_args nosuch=1 changes nothing with --optim sgd."],
        ),
        (
            ["--optim", "adamw_torch", "--optim_args", "eps=1", "--optim_target_modules", "q_proj"],
            [
                "--optim_args eps=1 changes nothing with --optim adamw_torch.",
                "--optim_target_modules changes nothing with --optim adamw_torch.",
            ],
        ),
        (["--optim", "sgd", "--optim_args", "momentum=0.9,nesterov=true"], []),
    ],
)
def test_what_an_optimiser_does_not_heed_is_said(
    options: list[str],
    said: list[str],
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert main(cli(reference, negative_set, tmp_path / "out", "--max_steps", "1", *options)) == 0
    assert [line.getMessage() for line in caplog.records if "changes nothing" in line.getMessage()] == said


def test_a_run_that_was_killed_in_its_first_step_leaves_the_directory_to_the_corrected_command(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run may be killed by the kernel for its memory: nobody could clean up."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "trainer_job.json").write_text(json.dumps({"objective": "cpo", "batch_size": 4096}))
    (out / "metrics.jsonl").touch()
    words = cli(reference, negative_set, out, "--max_steps", "1", "--save_strategy", "no")
    with caplog.at_level(logging.INFO):
        assert main(words) == 0
    assert "was killed before it logged or saved anything: starting anew" in caplog.text
    assert json.loads((out / "trainer_job.json").read_text())["batch_size"] == 8


@pytest.mark.parametrize("made", ["checkpoint-1", "model.safetensors", "notes.txt"])
def test_a_run_that_came_to_something_keeps_its_directory(
    made: str, reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "trainer_job.json").write_text(json.dumps({"objective": "cpo", "batch_size": 4096}))
    (out / made).touch()
    assert "already holds another job" in refused(cli(reference, negative_set, out, "--max_steps", "1"), capsys)


def test_an_adapter_needs_no_generation_config(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(reference, tmp_path / "model"))
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    adapter = ["--use_peft", "true", "--lora_target_modules", "q_proj", "--max_steps", "1", "--save_strategy", "no"]
    assert main(cli(model, negative_set, tmp_path / "out", *adapter)) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_failure_before_the_first_step_gives_the_directory_up_for_the_corrected_command(
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tracker that fails when training begins, after the record and metrics.jsonl were written."""
    out = tmp_path / "out"
    out.mkdir()
    written: list[str] = []

    def fault_stub(self: Any, *_: Any, **__: Any) -> None:
        (out / "runs").mkdir()
        written.extend(sorted(path.name for path in out.iterdir()))
        raise RuntimeError("no login\nand a long explanation")

    with monkeypatch.context() as patch:
        patch.setattr(Curves, "on_train_begin", fault_stub)
        line = refused(cli(reference, negative_set, out, "--max_steps", "1"), capsys)
    assert line.endswith("cannot set up the training of model '" + str(reference) + "' with these options: no login")
    assert written == [".claim", "metrics.jsonl", "runs", "trainer_job.json"]
    assert list(out.iterdir()) == []
    more = ["--max_steps", "2", "--save_strategy", "no", "--learning_rate", "1e-4"]
    assert main(cli(reference, negative_set, out, *more)) == 0


def test_an_error_of_a_trackers_own_class_before_the_first_step_is_one_line(
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class UsageErrorStub(Exception):
        """Derived from nothing else, as wandb's are."""

    def fault_stub(*_: Any, **__: Any) -> None:
        raise UsageErrorStub("api_key not configured\nand a long explanation")

    monkeypatch.setattr(Curves, "on_train_begin", fault_stub)
    line = refused(cli(reference, negative_set, tmp_path / "out", "--max_steps", "1"), capsys)
    assert line.endswith("with these options: UsageErrorStub: api_key not configured")
    assert not [record for record in caplog.records if record.exc_info and record.levelno > logging.DEBUG]  # no trace
    assert not (tmp_path / "out").exists()


def test_a_failure_of_the_first_step_of_a_resumed_run_leaves_what_was_there(
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    words = cli(reference, negative_set, out, "--max_steps", "2", "--save_steps", "1")
    assert main(words) == 0
    shutil.rmtree(out / "checkpoint-2")
    before = {str(path): path.is_dir() or path.read_bytes() for path in out.rglob("*") if path.name != "metrics.jsonl"}

    def fault_stub(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ContrastiveTrainer, "training_step", fault_stub)
    assert "out of memory" in refused([*words, "--resume_from_checkpoint", "true"], capsys)
    after = {str(path): path.is_dir() or path.read_bytes() for path in out.rglob("*") if path.name != "metrics.jsonl"}
    assert after == before


def test_a_failure_after_the_first_step_is_shown_whole_and_keeps_the_directory(
    reference: Path, negative_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fault(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                raise RuntimeError("a bug")

    monkeypatch.setattr("trainer.monitor.watch.Curves", Fault)
    with pytest.raises(RuntimeError, match="a bug"):
        main(cli(reference, negative_set, tmp_path / "out", "--max_steps", "3"))
    assert (tmp_path / "out" / "trainer_job.json").is_file()


def test_a_rehearsal_draws_no_number_of_the_run(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    trainer = make_trainer(reference, negative_set, tmp_path, max_steps=1)
    before = torch.random.get_rng_state()
    rehearse(trainer)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert trainer.lr_scheduler is None
    optimizer: Any = trainer.optimizer
    assert [group["lr"] for group in optimizer.param_groups] == [trainer.args.learning_rate] * 2
