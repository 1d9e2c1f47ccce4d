"""On a GPU: packed rows with FlexAttention's block masks and with dense ones against a plain computation on the CPU."""

import copy
import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

from data.shards import NegativeSet
from tests.support.plain import plain_logps
from tests.support.tiny import tiny_model
from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import TokenBatch, pack
from trainer.scoring.prepared_model import PreparedModel, candidate_logps, prepare_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ARCHITECTURES = pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
# Longer than FlexAttention's blocks of 128 tokens together, so that some blocks are left out.
SIZES = ((40, (30, 20, 7)), (1, (3, 50)), (60, (40,)), (20, (25, 25, 25)))
GENERATOR = torch.Generator().manual_seed(0)


def draw(length: int) -> list[int]:
    return torch.randint(97, (length,), generator=GENERATOR).tolist()


GROUPS = [Continuations(draw(p), [draw(n) for n in ns]) for p, ns in SIZES]
TOKENS = torch.tensor([[*map(len, g.continuations), *[1] * (3 - len(g.continuations))] for g in GROUPS])


def on_gpu(model: Any, dtype: torch.dtype) -> PreparedModel:
    prepared = prepare_model(copy.deepcopy(model).to("cuda", dtype))
    assert prepared.layout == "packed"
    assert prepared.block_masks
    return prepared


def by_blocks_and_dense(prepared: PreparedModel) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """Log-probabilities and gradients, in this order; the model must have used FlexAttention for the first."""
    batch: TokenBatch = pack(GROUPS).to("cuda")
    found = []
    for blocks in (True, False):
        used = dataclasses.replace(prepared, block_masks=blocks)
        mask = used.inputs(batch)["attention_mask"]
        assert isinstance(mask, BlockMask) == blocks  # the compiled kernel works here
        prepared.model.zero_grad()
        logps = candidate_logps(used, batch)
        (torch.linspace(0.5, 1.5, logps.numel(), device="cuda").view_as(logps) * logps).sum().backward()
        gradients = {n: p.grad.float().clone() for n, p in prepared.model.named_parameters() if p.grad is not None}
        found.append((logps.detach().float().cpu(), gradients))
    return found


@ARCHITECTURES
def test_float32_equals_the_plain_computation(architecture: str) -> None:
    model = tiny_model(architecture, scale=1.0)
    expected = plain_logps(model, GROUPS).detach()
    (blocks, ours), (dense, theirs) = by_blocks_and_dense(on_gpu(model, torch.float32))
    torch.testing.assert_close(blocks, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-3)
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-5, name


@ARCHITECTURES
def test_bfloat16_stays_within_a_hundredth_of_a_nat_per_token(architecture: str) -> None:
    model = tiny_model(architecture, scale=1.0)
    expected = plain_logps(model, GROUPS).detach()
    (blocks, ours), (dense, theirs) = by_blocks_and_dense(on_gpu(model, torch.bfloat16))
    assert ((blocks - expected).abs() / TOKENS).max() <= 1e-2
    assert ((dense - expected).abs() / TOKENS).max() <= 1e-2
    every, other = (torch.cat([g.flatten() for g in found.values()]) for found in (ours, theirs))
    assert (every - other).norm() <= 5e-2 * other.norm()


def test_a_sliding_window_falls_back_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert prepare_model(tiny_model("mistral").to("cuda")).layout == "padded"
    assert "sliding window" in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("objective", "expected"), [("cpo", math.log(4)), ("cpo-rank", math.log(24))])
def test_the_loss_starts_at_log_k(
    objective: str, expected: float, dtype: str, reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Scorer and trainer in one dtype; transformers' Trainer, our trainer's step, no TRL."""
    from transformers import AutoModelForCausalLM, TrainingArguments

    from tests.support.tiny import make_negative_set
    from trainer.groups.dataset import ContrastiveGroups
    from trainer.trainer import ContrastiveTrainer

    make_negative_set(tmp_path / "set", reference, num_groups=16, num_negatives=3, dtype=dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(reference, dtype=getattr(torch, dtype))
    model.to("cuda")
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=16, logging_steps=1, bf16=False,
        remove_unused_columns=False, report_to="none", save_strategy="no",
    )  # fmt: skip
    trainer = ContrastiveTrainer(
        model=model, args=arguments, train_dataset=ContrastiveGroups.of([NegativeSet(str(tmp_path / "set"))], "all"),
        objective=objective, beta=5.0, row_tokens=1024,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        trainer.train()
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert first == pytest.approx(expected, abs=1e-3 if dtype == "float32" else 0.5)
    assert "differs from the reference" not in caplog.text
