"""The trainer: the right gradient however groups are laid out, a known start, exact resume, TRL's own numbers."""

import json
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from data.errors import UserError
from data.shards import NegativeSet
from tests.conftest import ROOT, run_command
from tests.processes import TwoProcesses
from tests.tiny import make_negative_set
from trainer.arguments import PaperTrainingArguments, parse
from trainer.dataset import Collator, ContrastiveGroups, GroundTruths
from trainer.logprobs import attention_implementation, prepare_model
from trainer.output import find_checkpoint, resume_from
from trainer.run import _job, main
from trainer.scheduled import ScheduledSampling
from trainer.store import GroupStore
from trainer.trainer import ContrastiveTrainer


def make_trainer(reference: Path, negative_set: Path, tmp_path: Path, **options: Any) -> ContrastiveTrainer:
    objective = options.pop("objective", "cpo")
    row_tokens = options.pop("row_tokens", 256)
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=options.pop("dtype", torch.float32))
    path = prepare_model(model)
    negatives = NegativeSet(str(negative_set))
    dataset = (
        ContrastiveGroups(GroupStore([negatives], "train"))
        if objective in ("mle", "pss")
        else ContrastiveGroups.of([negatives], "train", options.pop("use", None))
    )
    arguments = PaperTrainingArguments(output_dir=str(tmp_path), use_cpu=True, save_strategy="no", **options)
    return ContrastiveTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=Collator(path, row_tokens, copies=3 if objective == "pss" else 1),
        objective=objective,
        beta=5.0,
        path=path,
        scheduled=ScheduledSampling(0.25, 2) if objective == "pss" else None,
    )


def first_gradient(trainer: ContrastiveTrainer) -> dict[str, torch.Tensor]:
    """The gradient of the first optimiser step, before clipping."""
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_: Any, **__: Any) -> None:
        if not gradients:
            assert trainer.model is not None
            for name, parameter in trainer.model.named_parameters():
                assert parameter.grad is not None
                gradients[name] = parameter.grad.clone()

    trainer.args.max_grad_norm = 0.0
    trainer.create_optimizer_and_scheduler(1)
    assert isinstance(trainer.optimizer, torch.optim.Optimizer)
    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    return gradients


@pytest.mark.parametrize("objective", ["mle", "pss", "cpo", "cpo-rank"])
def test_batch_8_and_batch_1_times_accumulation_8_give_the_same_gradient(
    objective: str, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    together = make_trainer(
        reference, negative_set, tmp_path, objective=objective, per_device_train_batch_size=8, max_steps=1
    )
    apart = make_trainer(
        reference,
        negative_set,
        tmp_path,
        objective=objective,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        max_steps=1,
        row_tokens=100_000,
    )
    expected, found = first_gradient(together), first_gradient(apart)
    norm = math.sqrt(sum(g.pow(2).sum().item() for g in expected.values()))
    difference = math.sqrt(sum((g - found[n]).pow(2).sum().item() for n, g in expected.items()))
    assert norm > 0
    assert difference / norm < 1e-5


def test_an_optimiser_step_sees_each_of_its_groups_once_whatever_the_token_budget(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """A budget that splits a batch into many forward passes gives the gradient of one pass."""
    one = make_trainer(reference, negative_set, tmp_path, per_device_train_batch_size=16, max_steps=1, row_tokens=10**6)
    many = make_trainer(reference, negative_set, tmp_path, per_device_train_batch_size=16, max_steps=1, row_tokens=1)
    batch = [one.train_dataset[i] for i in range(16)]  # type: ignore[index]
    assert len(one.data_collator(batch)) == 1
    assert len(many.data_collator(batch)) == 16
    expected, found = first_gradient(one), first_gradient(many)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item())


@pytest.mark.parametrize(("objective", "expected"), [("cpo", math.log(4)), ("cpo-rank", math.log(24))])
def test_the_loss_starts_at_log_k_and_log_k_factorial(
    objective: str, expected: float, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(
        reference, negative_set, tmp_path, objective=objective, max_steps=1, logging_steps=1, learning_rate=0.0
    )
    trainer.train()
    first = trainer.state.log_history[0]
    assert float(first["loss"]) == pytest.approx(expected, abs=2e-3)
    assert abs(float(first["logps/ground_truth_change"])) < 1e-3
    assert abs(float(first["rewards/margin"])) < 1e-2
    assert float(first["padding_fraction"]) == 0.0


def test_cpo_training_lowers_the_loss_and_ranks_the_ground_truth_first(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(
        reference,
        negative_set,
        tmp_path,
        max_steps=12,
        logging_steps=1,
        per_device_train_batch_size=48,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
    )
    trainer.train()
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert float(first["rewards/top1"]) < 0.5
    assert float(last["rewards/top1"]) > 0.9
    assert float(last["loss"]) < 0.25 * float(first["loss"])


def test_use_takes_the_first_negatives_of_a_strategy(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    negatives = NegativeSet(str(negative_set))
    every = ContrastiveGroups.of([negatives], "train")[5]
    chosen = ContrastiveGroups.of([negatives], "train", "an=2")[5]
    assert [list(c) for c in chosen.tokens.continuations] == [list(c) for c in every.tokens.continuations[:3]]
    assert list(chosen.reference_logps) == list(every.reference_logps[:3])
    assert len(every.tokens.continuations) == 4


def test_mle_equals_the_loss_of_trls_sft_trainer(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    """Same ground truths, TRL's completion-only loss: the same nats per token."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    groups = list(NegativeSet(str(negative_set)).groups())[:16]
    pairs = [(group.prompt_ids, group.response_ids) for group in groups]
    rows = [{"input_ids": [*p, *c], "completion_mask": [0] * len(p) + [1] * len(c)} for p, c in pairs]
    options: dict[str, Any] = {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 16, "use_cpu": True}
    sft = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(tmp_path / "sft"),
            completion_only_loss=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            **options,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(reference),
    )
    sft.train()
    options.pop("use_cpu")
    ours = make_trainer(reference, negative_set, tmp_path, objective="mle", **options)
    ours.train_dataset = GroundTruths(groups)
    ours.train()
    expected = float(sft.state.log_history[0]["loss"])
    assert float(ours.state.log_history[0]["loss"]) == pytest.approx(expected, abs=2e-4)


def cli(reference: Path, negative_set: Path, output: Path, *more: str) -> list[str]:
    return [
        "--objective", "cpo-rank", "--shards", str(negative_set), "--model", str(reference),
        "--output_dir", str(output), "--per_device_train_batch_size", "8", "--learning_rate", "1e-3",
        "--use_cpu", "true", "--disable_tqdm", "true", *more,
    ]  # fmt: skip


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


def test_the_final_model_lies_in_the_output_directory_with_its_tokenizer(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    assert main(cli(reference, negative_set, output, "--max_steps", "1", "--save_strategy", "no")) == 0
    assert (
        AutoTokenizer.from_pretrained(output)("Say")["input_ids"]
        == AutoTokenizer.from_pretrained(reference)("Say")["input_ids"]
    )
    assert AutoModelForCausalLM.from_pretrained(output, use_safetensors=True).dtype == torch.float32
    assert json.loads((output / "trainer_job.json").read_text())["objective"] == "cpo-rank"


def test_lora_trains_the_adapter_from_the_same_shards(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "lora"
    lora = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj", "--max_steps", "3"]
    assert main(cli(reference, negative_set, output, *lora, "--logging_steps", "1", "--save_strategy", "no")) == 0
    assert f"adapter: {output} (merge it" in capsys.readouterr().out
    weights = load_file(output / "adapter_model.safetensors")
    assert any(name.endswith("lora_B.weight") and tensor.abs().max() > 0 for name, tensor in weights.items())
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert float(history[0]["loss"]) == pytest.approx(math.log(24), abs=2e-3)


@pytest.mark.parametrize("peft", [False, True])
def test_gradient_checkpointing_changes_no_loss(
    peft: bool, reference: Path, negative_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it does happen: each layer's forward pass is repeated for the backward one."""
    passes: list[bool] = []
    forward = LlamaDecoderLayer.forward

    def counted_stub(*arguments: Any, **options: Any) -> Any:
        passes.append(torch.is_grad_enabled())
        return forward(*arguments, **options)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", counted_stub)
    options = ["--max_steps", "4", "--save_strategy", "no", "--logging_steps", "1", "--report_to", "none"]
    if peft:
        options += ["--use_peft", "true", "--lora_target_modules", "q_proj", "--learning_rate", "1e-2"]
    losses, counts = [], []
    for checkpointing in ("false", "true"):
        output = tmp_path / checkpointing
        passes.clear()
        words = cli(reference, negative_set, output, *options, "--gradient_checkpointing", checkpointing)
        assert main(words) == 0
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
        counts.append(sum(passes))
    assert counts[1] >= 2 * counts[0] > 0
    assert len(losses[0]) == 4
    assert losses[0][-1] < losses[0][0] - 0.01
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


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


@pytest.mark.parametrize(
    ("given", "kept"), [(["q_proj"], ["q_proj"]), (["q_proj", "v_proj"],) * 2, (["all-linear"], "all-linear")]
)
def test_lora_target_modules_are_names_also_when_there_is_one(given: list[str], kept: Any) -> None:
    words = ["--shards", "s", "--model", "m", "--output_dir", "o", "--use_peft", "--lora_target_modules", *given]
    assert parse(words)[2].lora_target_modules == kept


@pytest.mark.parametrize(("objective", "expected"), [("cpo", math.log(4)), ("cpo-rank", math.log(24))])
def test_in_bfloat16_the_loss_starts_within_the_bound(
    objective: str, expected: float, reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Scored and trained in bfloat16, packed otherwise."""
    make_negative_set(tmp_path / "set", reference, num_groups=16, num_negatives=3, dtype="bfloat16")
    with caplog.at_level(logging.INFO, logger="trainer.start"):
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


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    script, training, model = parse(["--shards", "s", "--model", "m", "--output_dir", str(tmp_path)])
    assert script.beta == 5.0
    assert script.objective == "cpo"
    assert (training.learning_rate, training.weight_decay) == (1e-5, 0.05)
    assert training.optim.startswith("adamw")
    assert training.per_device_train_batch_size == 64
    assert model.model_name_or_path == "m"


def test_the_papers_batch_is_shared_by_accumulation_steps(tmp_path: Path) -> None:
    _, training, _ = parse(
        ["--shards", "s", "--model", "m", "--output_dir", str(tmp_path), "--gradient_accumulation_steps", "8"]
    )
    assert training.per_device_train_batch_size == 8


@pytest.mark.parametrize(("processes", "steps"), [("3", "1"), ("128", "1"), ("4", "32"), ("1", "6")])
def test_a_batch_that_is_not_the_papers_must_be_asked_for(
    processes: str, steps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    words = ["--shards", "s", "--model", "m", "--output_dir", str(tmp_path), "--gradient_accumulation_steps", steps]
    with pytest.raises(UserError, match=f"64 cannot be divided by {processes} processes x {steps} acc") as caught:
        parse(words)
    assert "Set --per_device_train_batch_size" in str(caught.value)
    assert parse([*words, "--per_device_train_batch_size", "21"])[1].per_device_train_batch_size == 21


def test_flags_override_the_yaml_and_the_yaml_the_defaults(tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("shards: from-yaml\nmodel: m\nlearning_rate: 3e-4\nbeta: 2\noutput_dir: o\n")
    script, training, _ = parse(["--config", str(config), "--beta", "7"])
    assert (script.shards, script.beta, training.learning_rate) == (["from-yaml"], 7.0, 3e-4)


def test_from_scratch_trains_a_model_that_has_no_weights_yet(tmp_path: Path) -> None:
    from data.blank import BlankConfig, write_blank_model

    write_blank_model(BlankConfig(out=str(tmp_path / "blank"), hidden_size=64, num_layers=1, num_heads=2))
    done = run_command(
        "trainer.run", "--objective", "mle", "--from_scratch", "true", "--model", str(tmp_path / "blank"),
        "--dataset", "facts", "--output_dir", str(tmp_path / "out"), "--max_steps", "20", "--use_cpu", "true",
        "--learning_rate", "3e-3", "--logging_steps", "5", "--save_strategy", "no",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    # Random weights predict about uniformly over the vocabulary; twenty steps learn the answers' frequent words.
    assert float(history[0]["loss"]) < math.log(768) + 0.5
    assert float(history[3]["loss"]) < 0.7 * float(history[0]["loss"])


def test_two_processes_train_like_one_on_the_same_groups(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    """Two steps of SGD on 8 groups: 8 in one process, 4 in each of two, which share one output directory."""
    options = ["--max_steps", "2", "--optim", "sgd", "--lr_scheduler_type", "constant", "--save_strategy", "no"]
    options += ["--max_grad_norm", "0", "--learning_rate", "1e-2"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert main(cli(reference, negative_set, alone, *options)) == 0
    command = cli(reference, negative_set, together, *options, "--ddp_backend", "gloo")
    command[command.index("--per_device_train_batch_size") + 1] = "4"
    outputs = TwoProcesses.start(main, command).finish()
    assert [out.count(f"model: {together}") for out in outputs] == [1, 0]
    start, expected, found = (load_file(d / "model.safetensors") for d in (reference, alone, together))
    moved = math.sqrt(sum((expected[n] - start[n]).pow(2).sum().item() for n in expected))
    off = math.sqrt(sum((expected[n] - found[n]).pow(2).sum().item() for n in expected))
    assert moved > 1e-3
    assert off / moved < 1e-4
    records = [json.loads((d / "trainer_job.json").read_text()) for d in (alone, together)]
    assert records[0] == records[1]


def test_the_start_is_reported_with_its_bound(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Many passes: those of the micro-batch that are checked are counted, and h is 0 but for float32's rounding."""
    with caplog.at_level(logging.INFO, logger="trainer.start"):
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
    """In the second pass only, and smaller than any single token would show."""
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


def test_drop_last_that_leaves_nothing_is_refused_before_anything_is_written(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = cli(reference, negative_set, tmp_path / "out", "--dataloader_drop_last", "true")
    words[words.index("--per_device_train_batch_size") + 1] = "64"
    assert main(words) == 2
    assert "leaves none of the 48 groups: a step takes 64. Set it to false" in capsys.readouterr().err
    assert not (tmp_path / "out" / "trainer_job.json").exists()


def test_transformers_says_which_attention_a_model_uses(
    reference: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The attribute is private: its absence is to be noticed here, and costs the packed layout, not the result."""
    model = AutoModelForCausalLM.from_pretrained(reference)
    assert attention_implementation(model) == "sdpa"
    monkeypatch.setattr("trainer.logprobs.attention_implementation", lambda _: None)
    assert prepare_model(model) == "padded"
    assert "attention implementation 'None'" in caplog.text


@pytest.mark.parametrize(
    "more",
    [
        ("--max_steps", "2"),
        ("--max_grad_norm", "0.5"),
        ("--adam_beta2", "0.9"),
        ("--dtype", "bfloat16"),
        ("--use_peft", "true"),
        ("--row_tokens", "64"),
        ("--lr_scheduler_type", "cosine"),
        ("--split", "all"),
        ("--use", "an=1"),
        ("--rank_by", "rouge"),
        ("--min_similarity", "0.2"),
        ("--max_similarity", "0.8"),
        ("--sft_weight", "0.5"),
        ("--objective", "pss", "--pss_share", "0.5"),
        ("--objective", "pss", "--pss_passes", "2"),
        ("--objective", "pss", "--pss_mixtures", "2"),
        ("--objective", "dpo", "--train_sampling_strategy", "group_by_length"),
        ("--objective", "dpo", "--beta", "1"),
    ],
)
def test_the_record_holds_what_decides_the_result(more: tuple[str, ...]) -> None:
    def record(*words: str) -> dict[str, Any]:
        script, training, model = parse(["--shards", "s", "--model", "m", "--output_dir", "o", *words])
        return json.loads(json.dumps(_job(script, training, model, {"row_tokens": script.row_tokens})))

    without = more[:-2]
    assert record(*more) != record(*without)
    assert record(*without, "--logging_steps", "3") == record(*without)


@pytest.mark.parametrize(
    ("objective", "option", "value"),
    [
        ("cpo", "sft_weight", "0.5"),
        ("cpo-rank", "sft_weight", "0.5"),
        ("pss", "pss_share", "0.75"),
        ("pss", "pss_passes", "2"),
        ("pss", "pss_mixtures", "1"),
        ("cpo", "min_similarity", "0.4"),
        ("dpo", "max_similarity", "0.6"),
    ],
)
def test_an_option_of_the_command_reaches_the_training(
    objective: str, option: str, value: str, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """Other weights after a step."""
    weights = []
    common = ["--objective", objective, "--max_steps", "1", "--save_strategy", "no"]
    for name, more in (("with", [f"--{option}", value]), ("without", [])):
        assert main(cli(reference, negative_set, tmp_path / name, *common, *more)) == 0
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]


def test_an_interrupted_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for name in ("checkpoint-4", "checkpoint-10", "checkpoint-12"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-4", "checkpoint-10"):
        (tmp_path / name / "trainer_state.json").write_text("{}")
    assert find_checkpoint("true", tmp_path) == str(tmp_path / "checkpoint-10")
    assert find_checkpoint("true", tmp_path / "new") is None
    assert resume_from("False") is None
    assert resume_from(True) == "true"


@pytest.mark.parametrize("objective", ["cpo", "cpo-rank"])
def test_the_mle_term_is_added_with_its_weight_from_the_same_forward(
    objective: str, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """loss = contrast + w * MLE, gradients too, with micro-batches and passes of unequal size."""
    options: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}

    def make(objective: str, weight: float = 0.0) -> ContrastiveTrainer:
        trainer = make_trainer(reference, negative_set, tmp_path, objective=objective, row_tokens=60, **options)
        trainer.sft_weight = weight
        return trainer

    both, contrast, mle = make(objective, 0.5), make(objective), make("mle")
    mle.train_dataset = contrast.train_dataset  # the same steps: they depend on the lengths of groups
    forwards: dict[int, int] = {}
    for trainer in (both, contrast):
        backbone: Any = trainer.model.base_model  # type: ignore[union-attr]
        backbone.register_forward_hook(lambda m, *_: forwards.update({id(m): forwards.get(id(m), 0) + 1}))
    found, first, second = (first_gradient(trainer) for trainer in (both, contrast, mle))
    assert len(set(forwards.values())) == 1
    assert len(forwards) == 2
    for name, gradient in found.items():
        expected = first[name] + 0.5 * second[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item() + 1e-9)


def test_held_out_groups_count_once_each_and_their_averages_are_the_sets(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(reference, negative_set, tmp_path, per_device_eval_batch_size=5, objective="cpo-rank")
    trainer.eval_dataset = ContrastiveGroups.of([NegativeSet(str(negative_set))], "train")
    found = trainer.evaluate()
    groups = list(NegativeSet(str(negative_set)).groups())
    assert found["eval_loss"] == pytest.approx(math.log(24), abs=2e-3)
    truths = [g.reference_logp for g in groups]
    assert found["eval_logps/ground_truth"] == pytest.approx(sum(truths) / len(truths), abs=1e-3)  # type: ignore[arg-type]
    expected = [sum(g.reference_logp > c.reference_logp for c in g.negatives) / 3 for g in groups]  # type: ignore[operator]
    assert found["eval_logps/ranking_accuracy"] == pytest.approx(sum(expected) / len(expected), abs=0.03)
    assert trainer.state.log_history[-1]["eval_loss"] == found["eval_loss"]


def test_the_held_out_loss_is_the_one_that_is_trained(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    trainer = make_trainer(reference, negative_set, tmp_path, objective="cpo")
    trainer.sft_weight = 0.5
    trainer.eval_dataset = trainer.train_dataset
    found = trainer.evaluate()
    assert found["eval_loss/contrast"] == pytest.approx(math.log(4), abs=2e-3)
    assert found["eval_loss/sft"] > 1
    assert found["eval_loss"] == pytest.approx(found["eval_loss/contrast"] + 0.5 * found["eval_loss/sft"])


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_what_is_not_finite_stops_before_the_optimiser_step_with_the_groups(
    micro_batches: int,
    where: str,
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = make_trainer(
        reference, negative_set, tmp_path, max_steps=3, row_tokens=1, learning_rate=1e-3,
        per_device_train_batch_size=4 // micro_batches, gradient_accumulation_steps=micro_batches,
    )  # fmt: skip
    before = {}
    share, steps = trainer._share, iter(range(1000))

    def fault_stub(policy_logps: torch.Tensor, packed: Any, items: torch.Tensor) -> torch.Tensor:
        """The first group of the second step."""
        value = share(policy_logps, packed, items)
        if next(steps) == 4:
            before.update({k: v.clone() for k, v in trainer.model.state_dict().items()})  # type: ignore[union-attr]
            value = value * torch.nan if where == "loss" else Infinite.apply(value)  # type: ignore[assignment]
        return value

    monkeypatch.setattr(trainer, "_share", fault_stub)
    with pytest.raises(UserError) as caught:
        trainer.train()
    message = str(caught.value)
    ids = [g.id for g in NegativeSet(str(negative_set)).groups()]
    named = [group_id for group_id in ids if group_id in message]
    assert len(named) == 4
    assert "of step 2 is not finite; stopped before the optimiser step" in message
    assert ("The loss of these is not finite: " in message) == (where == "loss")
    assert message.startswith("the loss (nan)" if where == "loss" else "a gradient")
    for name, value in trainer.model.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(value, before[name]), name


class Infinite(torch.autograd.Function):
    """Finite in value, infinite in gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradients[0] * torch.inf


def test_sigterm_saves_a_checkpoint_and_resuming_gives_what_never_stopping_gives(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    options = ["--max_steps", "60", "--save_strategy", "no", "--logging_steps", "1"]
    assert main(cli(reference, negative_set, tmp_path / "whole", *options)) == 0
    words = cli(reference, negative_set, tmp_path / "cut", *options)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.run", *words], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "cut" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert "SIGTERM: stopped at step" in errors
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
