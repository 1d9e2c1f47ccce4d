"""FlexAttention's block masks against dense attention over packed rows: outputs, gradients, time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.benchmarks.extent import extent
from tests.gpu.parts.checks import at_most
from tests.gpu.parts.inputs import make_groups
from tests.gpu.parts.timing import median_seconds
from trainer.scoring.flex import TOLERANCE, attention_by_block, packed_block_mask
from trainer.scoring.packing import lay_out, packed_attention

# Query heads, key heads, head size: GPT-2's, GPT-2 XL's, OpenLLaMA-3B's (100 is no power of two), Llama 3's kind.
HEADS = extent(((12, 12, 64), (25, 25, 64), (32, 32, 100), (16, 4, 128)), ((2, 2, 16), (4, 2, 16)))
TOKENS = extent(4096, 300)


def flex(device: str) -> dict[str, Any]:
    """Of each kind of heads, in float32 and bfloat16: off dense attention in float32, and times in bfloat16."""
    groups = [group.tokens for group in make_groups("124M", extent(16, 4))]
    _, batch = next(iter(lay_out(groups, "packed", TOKENS)))
    assert batch.group_ids is not None
    assert batch.segment_ids is not None
    ids = batch.group_ids.to(device), batch.segment_ids.to(device)
    dense, blocks = packed_attention(*ids), packed_block_mask(*ids)
    length = dense.shape[-1]
    checks, times = [], []
    for heads, key_heads, size in HEADS:
        grouped = heads != key_heads

        def by_blocks(q: Any, k: Any, v: Any) -> torch.Tensor:
            return attention_by_block(q, k, v, blocks)

        def by_dense(q: Any, k: Any, v: Any, grouped: bool = grouped) -> torch.Tensor:
            return scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=grouped)

        exact = [torch.randn(1, n, length, size, device=device) for n in (heads, key_heads, key_heads, heads)]
        expected = _values(by_dense, exact, device)
        for dtype in (torch.float32, torch.bfloat16):
            inputs = [x.to(dtype) for x in exact]
            found = _values(by_blocks, inputs, device)
            what = f"{heads} heads of {size}, {key_heads} of keys, {dtype}".replace("torch.", "")
            for name, ours, theirs in zip(("output", "gradients of q", "of k", "of v"), found, expected, strict=False):
                off = ((ours.float() - theirs).norm() / theirs.norm()).item()
                checks.append(at_most(f"{what}: {name}, of its norm", off, TOLERANCE[dtype]))
        seconds = {
            name: median_seconds(partial(_values, attend, [x.bfloat16() for x in exact], device), device)
            for name, attend in (("blocks_seconds", by_blocks), ("dense_seconds", by_dense))
        }
        times.append({"heads": heads, "key_heads": key_heads, "head_size": size, "tokens": length, **seconds})
    return {"checks": checks, "attention": times}


def _values(attend: Callable[..., torch.Tensor], tensors: list[torch.Tensor], device: str) -> list[torch.Tensor]:
    """Output and gradients of q, k and v; the last tensor comes from above. On a CPU FlexAttention has no gradients."""
    *inputs, upstream = tensors
    if device == "cpu":
        return [attend(*inputs)]
    inputs = [x.detach().requires_grad_() for x in inputs]
    output = attend(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]
