"""The trainer: the right gradient however groups are laid out, one step at a time, TRL's own numbers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from data.command.errors import UserError
from data.shards import NegativeSet
from tests.support.commands import fork_command
from tests.support.processes import TwoProcesses
from tests.support.training import Infinite, cli, first_gradient, make_trainer
from trainer.groups.dataset import ContrastiveGroups, GroundTruths
from trainer.run import main
from trainer.trainer import ContrastiveTrainer

pytestmark = pytest.mark.seconds


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
    """Checkpointing does happen: each layer's forward pass is repeated for the backward one."""
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


def test_from_scratch_trains_a_model_that_has_no_weights_yet(tmp_path: Path) -> None:
    from data.blank import BlankConfig, write_blank_model

    write_blank_model(BlankConfig(out=str(tmp_path / "blank"), hidden_size=64, num_layers=1, num_heads=2))
    done = fork_command(
        "trainer.run", "--objective", "mle", "--from_scratch", "true", "--model", str(tmp_path / "blank"),
        "--dataset", "facts", "--output_dir", str(tmp_path / "out"), "--max_steps", "20", "--use_cpu", "true",
        "--learning_rate", "3e-3", "--logging_steps", "5", "--save_strategy", "no",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    # Random weights predict about uniformly over the vocabulary; twenty steps learn the answers' frequent words.
    assert float(history[0]["loss"]) < math.log(768) + 0.5
    assert float(history[4]["loss"]) < 0.7 * float(history[0]["loss"])


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


@pytest.mark.parametrize("objective", ["cpo", "cpo-rank"])
def test_the_mle_term_is_added_with_its_weight_from_the_same_forward(
    objective: str, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """loss = contrast + w * MLE, gradients too, with micro-batches and passes of unequal size."""
    options: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}

    def make(objective: str, weight: float = 0.0) -> ContrastiveTrainer:
        given = {"sft_weight": weight} if weight else {}
        return make_trainer(
            reference, negative_set, tmp_path, objective=objective, objective_options=given, row_tokens=60, **options
        )

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


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_the_optimiser_step_with_the_groups(
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

    def fault_stub(*arguments: Any) -> torch.Tensor:
        """The first group of the second step."""
        value = share(*arguments)
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
