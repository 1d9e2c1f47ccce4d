"""FlexAttention over packed rows, on a GPU: a block mask skips what the dense mask of a packed row would compute."""

import functools
import logging
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from data.command.errors import first_line
from trainer.scoring.packing import PREFIX_SEGMENT, packed_attention

log = logging.getLogger(__name__)

# Of output and gradients against dense attention, relative to their spread.
TOLERANCE = {torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 5e-2}  # a GPU's float32 may be TF32


def packed_block_mask(group_ids: torch.Tensor, segment_ids: torch.Tensor) -> BlockMask:
    """The mask of `trainer.scoring.packing.packed_attention` as blocks: [B, T] and [B, T] in."""

    def sees(row: Any, _: Any, query: Any, key: Any) -> Any:
        same_group = group_ids[row, query] == group_ids[row, key]
        own_segment = segment_ids[row, query] == segment_ids[row, key]
        to_prefix = segment_ids[row, key] == PREFIX_SEGMENT
        return (query >= key) & same_group & (own_segment | to_prefix)

    rows, length = group_ids.shape
    return create_block_mask(sees, rows, None, length, length, device=group_ids.device)


def attention_by_block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention as the mask says, [B, heads, T, D] in and out; keys and values may have fewer heads."""
    grouped = query.shape[1] != key.shape[1]
    # Unlike SDPA, FlexAttention is not on autocast's list.
    query, key, value = (x.to(autocast_dtype(query)) for x in (query, key, value))
    if dropout:  # FlexAttention has none
        rows, length = query.shape[0], query.shape[2]
        dense = create_mask(mask.mask_mod, rows, 1, length, length, device=query.device)
        return scaled_dot_product_attention(
            query, key, value, attn_mask=dense, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )
    attend = _compiled() if query.is_cuda else flex_attention
    return attend(query, key, value, block_mask=mask, scale=scaling, enable_gqa=grouped)  # type: ignore[return-value]


def autocast_dtype(tensor: torch.Tensor) -> torch.dtype:
    """What autocast makes of a tensor's type, where it is on."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


@functools.cache
def works_on(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, head_size: int) -> bool:
    """Whether the compiled kernel runs here, forward and backward, and gives what dense attention gives.

    It needs a working Triton, and not every head size is supported everywhere. If not, the log says why. The trial has
    gradients of its own, wherever it is called from.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        reason = _trial(device, dtype, heads, key_heads, head_size)
    if reason:
        log.warning("Using dense attention masks, slower than FlexAttention, which does not work here (%s).", reason)
    return reason is None


def _trial(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, head_size: int) -> str | None:
    """Why the kernel cannot be used, or None."""
    generator = torch.Generator().manual_seed(0)
    group_ids = torch.tensor([0] * 150 + [1] * 100, device=device)[None]
    segment_ids = torch.tensor([0] * 40 + [1] * 50 + [2] * 60 + [0] * 30 + [1] * 70, device=device)[None]

    def random(heads: int) -> torch.Tensor:
        return torch.randn(1, heads, 250, head_size, generator=generator).to(device, dtype).requires_grad_()

    inputs = random(heads), random(key_heads), random(key_heads)
    upstream = random(heads).detach()
    dense = packed_attention(group_ids, segment_ids)
    expected = scaled_dot_product_attention(*inputs, attn_mask=dense, enable_gqa=heads != key_heads)
    try:
        output = attention_by_block(*inputs, packed_block_mask(group_ids, segment_ids))
        values = output, *torch.autograd.grad(output, inputs, upstream)
    except Exception as error:  # whatever a compiler raises
        return first_line(error)
    others = expected, *torch.autograd.grad(expected, inputs, upstream)
    off = max(((a - b).float().norm() / b.float().norm()).item() for a, b in zip(values, others, strict=True))
    if off <= TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]):
        return None
    return f"off by {off:.2g} of what dense attention gives"


@functools.cache
def _compiled() -> Any:
    # Rows have many lengths: one kernel for all of them.
    return torch.compile(flex_attention, dynamic=True)
