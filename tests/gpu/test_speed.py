"""On a GPU in bfloat16: a packed step against padded K-way with the reference in the loop, and plain next-token steps.

GPT-2 of 124 M and 1.5 B parameters with random weights; K = 12, lengths like Dolly's. `-s` prints the table.
"""

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from trainer.objectives.losses import cpo_loss
from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import TokenBatch, lay_out, pad
from trainer.scoring.prepared_model import candidate_logps, prepare_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

K, STEP, ROW_TOKENS, VOCABULARY = 12, 16, 8192, 50257
SHAPES = {"124M": {"n_embd": 768, "n_layer": 12, "n_head": 12}, "1.5B": {"n_embd": 1600, "n_layer": 48, "n_head": 25}}


@dataclass
class Measured:
    """A contestant's step: seconds, and peak bytes of GPU memory."""

    seconds: float
    memory: int


def make_model(size: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("gpt2", **SHAPES[size], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to("cuda")


def make_groups() -> list[Continuations]:
    """Prefixes of 91 and continuations of 76 tokens on average, log-normal, as in Dolly's training half."""
    draw = random.Random(0)

    def tokens(mean: float) -> list[int]:
        length = min(256, max(2, round(draw.lognormvariate(0.0, 0.9) * mean / 1.5)))
        return [draw.randrange(VOCABULARY) for _ in range(length)]

    return [Continuations(tokens(91), [tokens(76) for _ in range(K)]) for _ in range(STEP)]


def measure(step: Callable[[], None]) -> Measured:
    """Median of five after two to warm up (and to compile)."""
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return Measured(sorted(seconds)[2], torch.cuda.max_memory_allocated())


def packed(size: str, groups: list[Continuations]) -> Measured:
    model = make_model(size)
    prepared = prepare_model(model)
    assert prepared.layout == "packed"
    batches = [batch.to("cuda") for _, batch in lay_out(groups, "packed", ROW_TOKENS)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        for batch in batches:
            logps = candidate_logps(prepared, batch)
            loss = cpo_loss(logps, torch.zeros_like(logps), beta=5.0, mask=batch.mask)
            (loss * len(batch.mask) / STEP).backward()
        optimizer.step()
        optimizer.zero_grad()

    return measure(step)


def padded(size: str, groups: list[Continuations]) -> Measured:
    policy, reference = make_model(size), make_model(size).eval()
    batches = [pad([group]).to("cuda") for group in groups]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5)

    def logps(model: Any, batch: TokenBatch) -> torch.Tensor:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.flatten(0, 1)
        values = logits[batch.target_index].float().log_softmax(-1).gather(-1, batch.target_ids[:, None])[:, 0]
        sums = torch.zeros(batch.mask.numel(), device="cuda").index_add(0, batch.slot, values)
        return sums.view(batch.mask.shape)

    def step() -> None:
        for batch in batches:
            with torch.no_grad():
                before = logps(reference, batch)
            (cpo_loss(logps(policy, batch), before, beta=5.0) / STEP).backward()
        optimizer.step()
        optimizer.zero_grad()

    return measure(step)


def plain(size: str, tokens: int) -> Measured:
    """Time for as many tokens in rows of 1,024, eight rows at a time: GPT-2's longest context."""
    model = make_model(size)
    batches = torch.randint(VOCABULARY, (max(1, tokens // ROW_TOKENS), 8, 1024), device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        for ids in batches:
            (model(input_ids=ids, labels=ids).loss / len(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()

    found = measure(step)
    return Measured(found.seconds * tokens / batches.numel(), found.memory)


@pytest.mark.parametrize("size", SHAPES)
def test_a_packed_step_is_faster_and_leaner_than_padded_k_way(size: str) -> None:
    groups = make_groups()
    tokens = sum(group.packed_length for group in groups)
    found = {}
    for name, run in {"packed": lambda: packed(size, groups), "padded": lambda: padded(size, groups),
                      "plain": lambda: plain(size, tokens)}.items():  # fmt: skip
        found[name] = run()
        gc.collect()
        torch.cuda.empty_cache()
    print(f"\n{torch.cuda.get_device_name()}, GPT-2 of {size}, K = {K}, {STEP} groups of {tokens} tokens a step")
    for name, one in found.items():
        print(f"| {name} | {STEP / one.seconds:.1f} groups/s | {one.memory / 2**30:.2f} GiB |")
    assert found["padded"].seconds >= 2.5 * found["packed"].seconds
    assert found["packed"].memory <= 0.5 * found["padded"].memory
    assert found["packed"].seconds <= 1.05 * found["plain"].seconds
