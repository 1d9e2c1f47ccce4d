"""Before the first step the policy is the reference: the loss starts at log K, what differs is named."""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny import make_negative_set
from tests.support.training import cli, make_trainer
from trainer.run import main

pytestmark = pytest.mark.seconds


@pytest.mark.parametrize(
    ("objective", "expected"), [("cpo", math.log(4)), ("cpo-rank", math.log(24)), ("nca", 2 * math.log(2))]
)
def test_the_loss_starts_at_log_k_and_log_k_factorial(
    objective: str, expected: float, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(
        reference, negative_set, tmp_path, objective=objective, max_steps=1, logging_steps=1, learning_rate=0.0
    )
    trainer.train()
    first = trainer.state.log_history[0]
    assert float(first["loss"]) == pytest.approx(expected, abs=2e-3)
    assert float(first["start/contrast"]) == pytest.approx(expected)
    assert abs(float(first["logps/ground_truth_change"])) < 1e-3
    assert abs(float(first["rewards/margin"])) < 1e-2
    assert float(first["padding_fraction"]) == 0.0


def test_a_policy_that_is_not_the_reference_is_named_before_the_first_step(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(reference, negative_set, tmp_path, max_steps=1)
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight.mul_(1.5)  # type: ignore[union-attr]
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "differs from the reference before the first step" in caplog.text
    assert "torch.float32" in caplog.text
    assert "packed" in caplog.text


def test_no_warning_when_the_policy_is_the_reference(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        make_trainer(reference, negative_set, tmp_path, max_steps=1).train()
    assert "differs from the reference" not in caplog.text


@pytest.mark.parametrize(("objective", "expected"), [("cpo", math.log(4)), ("cpo-rank", math.log(24))])
def test_in_bfloat16_the_loss_starts_within_the_bound(
    objective: str, expected: float, reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Scored and trained in bfloat16, packed otherwise."""
    make_negative_set(tmp_path / "set", reference, num_groups=16, num_negatives=3, dtype="bfloat16")
    with caplog.at_level(logging.INFO, logger="trainer.monitor.start"):
        trainer = make_trainer(
            reference, tmp_path / "set", tmp_path / "out", objective=objective, dtype=torch.bfloat16, row_tokens=70,
            max_steps=1, logging_steps=1, per_device_train_batch_size=16,
        )  # fmt: skip
        trainer.train()
    (line,) = (r.getMessage() for r in caplog.records if r.getMessage().startswith("before the first step"))
    worst, bound = (float(line.split(before)[1].split()[0].rstrip(":")) for before in ("max |h| ", "(bound "))
    assert "torch.bfloat16" in line
    assert worst <= bound == pytest.approx(5.0 * 2e-2 * int(line.split("up to ")[1].split()[0]), rel=0.05)
    assert float(trainer.state.log_history[0]["loss"]) == pytest.approx(expected, abs=0.1)
    assert "differs from the reference" not in caplog.text


def test_a_set_that_was_scored_in_another_dtype_is_named(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--shards", str(negative_set), "--model", str(reference), "--use_cpu", "true", "--max_steps", "1"]
    words += ["--per_device_train_batch_size", "2", "--save_strategy", "no", "--report_to", "none"]
    with caplog.at_level(logging.WARNING):
        assert main([*words, "--output_dir", str(tmp_path / "same")]) == 0
        assert "was scored in" not in caplog.text
        assert main([*words, "--output_dir", str(tmp_path / "other"), "--bf16", "true"]) == 0
    assert "was scored in float32, packed layout; this run computes in bfloat16, packed layout" in caplog.text
    assert "--scorer_dtype bfloat16" in caplog.text


def test_mixed_precision_of_accelerates_configuration_counts_like_the_flag(
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """recipes/accelerate set it; the start is then bounded as bfloat16's, and a resume in float32 is refused."""
    words = cli(reference, negative_set, tmp_path / "out", "--max_steps", "2", "--save_steps", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with caplog.at_level(logging.INFO):
        assert main(words) == 0
    assert "this run computes in bfloat16, packed layout" in caplog.text
    (line,) = (r.getMessage() for r in caplog.records if r.getMessage().startswith("before the first step"))
    assert "torch.bfloat16" in line
    assert json.loads((tmp_path / "out/trainer_job.json").read_text())["training"]["mixed_precision"] == "bf16"
    shutil.rmtree(tmp_path / "out/checkpoint-2")
    (tmp_path / "out/model.safetensors").unlink()
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert main([*words, "--resume_from_checkpoint", "true"]) == 2


def test_the_start_is_reported_with_its_bound(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Many passes: those of the micro-batch that are checked are counted, and h is 0 but for float32's rounding."""
    with caplog.at_level(logging.INFO, logger="trainer.monitor.start"):
        make_trainer(
            reference, negative_set, tmp_path, max_steps=1, row_tokens=1, per_device_train_batch_size=12
        ).train()
    (line,) = (r.getMessage() for r in caplog.records if r.getMessage().startswith("before the first step"))
    assert "on 8 groups" in line
    assert "loss 1.386" in line
    assert "log K is 1.3863" in line
    assert float(line.split("max |h| ")[1].split()[0]) < 1e-4


def test_a_small_difference_that_a_long_response_adds_up_is_noticed(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The difference is in the second pass only, and smaller than any single token would show."""
    trainer = make_trainer(reference, negative_set, tmp_path, max_steps=1, row_tokens=1, per_device_train_batch_size=4)
    passes: Any = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])  # type: ignore[index]
    passes[1].reference_logps[0, 2] += 0.05
    with caplog.at_level(logging.WARNING):
        trainer._check_start(passes)
    assert "max |h| 0.25" in caplog.text


def test_a_process_without_groups_in_the_first_step_has_nothing_to_check(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(reference, negative_set, tmp_path, max_steps=1)
    passes: Any = trainer.data_collator([trainer.train_dataset[~3], trainer.train_dataset[~3]])  # type: ignore[index]
    assert [(packed.ids, packed.counts) for packed in passes] == [([trainer.train_dataset[3].id], False)]  # type: ignore[index]
    with caplog.at_level(logging.INFO):
        trainer._check_start(passes)
    assert "before the first step" not in caplog.text
