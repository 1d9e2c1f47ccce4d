"""Log-probabilities and gradients on the device against a plain computation on the CPU; the trainer's first loss."""

import copy
import dataclasses
import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask

from data.shards import NegativeSet
from tests.gpu.parts.checks import at_most
from tests.support.plain import plain_logps
from tests.support.tiny import make_negative_set, save_tiny_model, tiny_model
from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import lay_out
from trainer.scoring.prepared_model import PreparedModel, candidate_logps, prepare_model

PACKED, PADDED = ("gpt2", "llama", "qwen2"), ("mistral",)  # Mistral has a sliding window, which packed rows do not take
# Longer than FlexAttention's blocks of 128 tokens together, so that some blocks are left out.
SIZES = ((40, (30, 20, 7)), (1, (3, 50)), (60, (40,)), (20, (25, 25, 25)))
FLOAT32, BFLOAT16_PER_TOKEN, BFLOAT16_GRADIENT = 1e-3, 1e-2, 5e-2

Gradients = dict[str, torch.Tensor]


def small_groups() -> list[Continuations]:
    """Four groups of one to three continuations, of tokens that the tiny models know."""
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(97, (length,), generator=generator).tolist()

    return [Continuations(draw(prefix), [draw(length) for length in lengths]) for prefix, lengths in SIZES]


def float32(device: str) -> dict[str, Any]:
    """In float32, of each architecture: the packed layout with either mask, or the padded layout."""
    groups, checks = small_groups(), []
    for architecture in (*PACKED, *PADDED):
        model = tiny_model(architecture, scale=1.0)
        plain = plain_logps(model, groups)
        expected = plain.detach(), _gradients(model, plain)
        for mask, prepared in _ways(model, device, torch.float32, packed=architecture in PACKED):
            logps, gradients = _values(prepared, groups, blocks=mask == "blocks")
            what = f"{architecture}, {mask}"
            checks += [
                at_most(f"{what}: log-probability, nats", (logps - expected[0]).abs().max().item(), FLOAT32),
                at_most(f"{what}: gradient, of its norm", _off(gradients, expected[1]), FLOAT32),
            ]
    return {"checks": checks}


def bfloat16(device: str) -> dict[str, Any]:
    """In bfloat16 against float32 on the CPU: nats per token, and the whole gradient with either mask."""
    groups, checks = small_groups(), []
    lengths = [[len(c) for c in group.continuations] for group in groups]
    tokens = torch.tensor([[*of_group, *[1] * (3 - len(of_group))] for of_group in lengths])
    for architecture in PACKED:
        model = tiny_model(architecture, scale=1.0)
        plain = plain_logps(model, groups)
        expected, exact = plain.detach(), _whole(_gradients(model, plain))
        for mask, prepared in _ways(model, device, torch.bfloat16, packed=True):
            logps, gradients = _values(prepared, groups, blocks=mask == "blocks")
            worst = ((logps - expected).abs() / tokens).max().item()
            off = ((_whole(gradients) - exact).norm() / exact.norm()).item()
            what = f"{architecture}, {mask}"
            checks += [
                at_most(f"{what}: log-probability, nats per token", worst, BFLOAT16_PER_TOKEN),
                at_most(f"{what}: gradient, of its norm", off, BFLOAT16_GRADIENT),
            ]
    return {"checks": checks}


def start(device: str) -> dict[str, Any]:
    """The trainer's first loss on a set that the scorer scored on the device: log K, or log K!."""
    checks = []
    with tempfile.TemporaryDirectory() as folder:
        reference = save_tiny_model(Path(folder) / "reference")
        for dtype, bound in (("float32", 1e-3), ("bfloat16", 0.5)):
            path = Path(folder) / dtype
            make_negative_set(path, reference, num_groups=16, num_negatives=3, dtype=dtype)
            for objective, expected in (("cpo", math.log(4)), ("cpo-rank", math.log(24))):
                loss, warnings = _first_loss(path, reference, objective, dtype, device, folder)
                checks += [
                    at_most(f"{objective}, {dtype}: first loss off its value", abs(loss - expected), bound),
                    at_most(f"{objective}, {dtype}: warnings that policy and reference differ", warnings, 0),
                ]
    return {"checks": checks}


def _ways(model: Any, device: str, dtype: torch.dtype, packed: bool) -> list[tuple[str, PreparedModel]]:
    """Layouts and masks that the device has for a model, by name; a CPU has no block masks."""
    prepared = prepare_model(copy.deepcopy(model).to(device, dtype))
    if prepared.layout != ("packed" if packed else "padded"):
        raise AssertionError(f"layout {prepared.layout} of a {type(model).__name__}")
    if not packed:
        return [("padded", prepared)]
    return [(mask, prepared) for mask in (("blocks", "dense") if device == "cuda" else ("dense",))]


def _values(prepared: PreparedModel, groups: list[Continuations], *, blocks: bool) -> tuple[torch.Tensor, Gradients]:
    """Log-probabilities, [G, K], and gradients on the CPU; the model uses FlexAttention where `blocks` says so."""
    used = dataclasses.replace(prepared, block_masks=blocks)
    ((_, batch),) = lay_out(groups, prepared.layout, 4096)
    batch = batch.to(prepared.model.device)
    if isinstance(used.inputs(batch)["attention_mask"], BlockMask) != blocks:
        raise AssertionError("FlexAttention's kernel does not work here: the log says why")
    logps = candidate_logps(used, batch)
    return logps.detach().float().cpu(), _gradients(prepared.model, logps)


def _gradients(model: Any, logps: torch.Tensor) -> Gradients:
    """Gradients of a sum of log-probabilities in which each has another weight."""
    model.zero_grad()
    (torch.linspace(0.5, 1.5, logps.numel(), device=logps.device).view_as(logps) * logps).sum().backward()
    return {n: p.grad.float().cpu() for n, p in model.named_parameters() if p.grad is not None}


def _off(found: Gradients, expected: Gradients) -> float:
    """The largest difference of a parameter's gradient, of its norm; where that is small, of a hundredth."""
    if found.keys() != expected.keys():
        raise AssertionError(f"gradients of other parameters: {sorted(found.keys() ^ expected.keys())}")
    return max(((found[n] - g).norm() / (g.norm() + 1e-2)).item() for n, g in expected.items())


def _whole(gradients: Gradients) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def _first_loss(path: Path, reference: Path, objective: str, dtype: str, device: str, folder: str) -> tuple[float, int]:
    """The loss of the first step, and how often the trainer warned that the policy is not the reference."""
    from transformers import AutoModelForCausalLM, TrainingArguments

    from trainer.groups.dataset import ContrastiveGroups
    from trainer.trainer import ContrastiveTrainer

    model: Any = AutoModelForCausalLM.from_pretrained(reference, dtype=getattr(torch, dtype))
    model.to(device)
    arguments = TrainingArguments(
        output_dir=f"{folder}/out", max_steps=1, per_device_train_batch_size=16, logging_steps=1, bf16=False,
        remove_unused_columns=False, report_to="none", save_strategy="no", use_cpu=device == "cpu", disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
    )  # fmt: skip
    trainer = ContrastiveTrainer(
        model=model, args=arguments, train_dataset=ContrastiveGroups.of([NegativeSet(str(path))], "all"),
        objective=objective, beta=5.0, row_tokens=1024,
    )  # fmt: skip
    counted = _Counted()
    logging.getLogger("trainer.monitor.start").addHandler(counted)
    try:
        trainer.train()
    finally:
        logging.getLogger("trainer.monitor.start").removeHandler(counted)
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry), counted.warnings


class _Counted(logging.Handler):
    """Counts warnings that policy and reference differ."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings += "differs from the reference" in record.getMessage()
