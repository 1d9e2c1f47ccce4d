"""FlexAttention's block masks against dense attention over packed rows: outputs, gradients, time."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from data.command.errors import first_line
from tests.benchmarks.extent import extent
from tests.gpu.parts.checks import at_most
from tests.gpu.parts.inputs import make_groups
from tests.gpu.parts.timing import median_seconds
from trainer.scoring.flex import TOLERANCE, attention_by_block, packed_block_mask
from trainer.scoring.packing import lay_out, packed_attention

# Query heads, key heads, head size: GPT-2's, GPT-2 XL's, OpenLLaMA-3B's (100 is no power of two), Llama 3's kind.
HEADS = extent(((12, 12, 64), (25, 25, 64), (32, 32, 100), (16, 4, 128)), ((2, 2, 16), (4, 2, 16)))
TOKENS = extent(4096, 300)
RESULTS = ("output", "gradient of queries", "gradient of keys", "gradient of values")

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def flex(device: str) -> dict[str, Any]:
    """How far each kind of heads is off dense attention in float32, in two types, and its times in bfloat16."""
    groups = [group.tokens for group in make_groups("124M", extent(16, 4))]
    _, batch = next(iter(lay_out(groups, "packed", TOKENS)))
    assert batch.group_ids is not None
    assert batch.segment_ids is not None
    ids = batch.group_ids.to(device), batch.segment_ids.to(device)
    mask, blocks = packed_attention(*ids), packed_block_mask(*ids)
    length = mask.shape[-1]

    def by_blocks(q: Any, k: Any, v: Any) -> torch.Tensor:
        return attention_by_block(q, k, v, blocks)

    def dense(q: Any, k: Any, v: Any) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

    checks, times = [], []
    for heads, key_heads, size in HEADS:
        what = f"{heads} heads of {size}, {key_heads} of keys"
        exact = [torch.randn(1, n, length, size, device=device) for n in (heads, key_heads, key_heads, heads)]
        for dtype in (torch.float32, torch.bfloat16):
            checks += compared(by_blocks, dense, exact, dtype, what)
        if checks[-1]["value"] is None:  # does not run in bfloat16
            continue
        low = [tensor.bfloat16() for tensor in exact]
        seconds = {
            name: median_seconds(partial(values, attend, low), device)
            for name, attend in (("blocks_seconds", by_blocks), ("dense_seconds", dense))
        }
        times.append({"heads": heads, "key_heads": key_heads, "head_size": size, "tokens": length, **seconds})
    return {"checks": checks, "attention": times}


def compared(ours: Attend, dense: Attend, exact: list[torch.Tensor], dtype: torch.dtype, what: str) -> list[Any]:
    """Checks of `RESULTS` in a type against dense attention in float32; one that fails if it does not run."""
    what = f"{what}, {dtype}".replace("torch.", "")
    expected = values(dense, exact)
    try:
        found = values(ours, [tensor.to(dtype) for tensor in exact])
    except Exception as error:  # whatever a compiler raises, of one kind of heads
        return [at_most(f"{what}: does not run ({first_line(error)[:200]})", math.nan, 0)]
    return [
        at_most(f"{what}: {name}, of its norm", ((a.float() - b).norm() / b.norm()).item(), TOLERANCE[dtype])
        for name, a, b in zip(RESULTS, found, expected, strict=False)
    ]


def values(attend: Attend, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """`RESULTS`, on a CPU, where FlexAttention has no more, the output alone; the last tensor is its gradient."""
    *inputs, upstream = tensors
    if not upstream.is_cuda:
        return [attend(*inputs)]
    inputs = [x.detach().requires_grad_() for x in inputs]
    output = attend(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]
