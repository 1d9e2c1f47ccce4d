"""Attention over packed rows, segment by segment: the work of the mask's True entries and no more.

A dense mask makes every token look at the whole row. Here a prefix attends to itself, and each continuation to its
prefix and itself. transformers finds the function under NAME, as it finds any attention implementation. A block mask
goes to FlexAttention instead (`trainer.scoring.flex`); without a packed row (generation, the padded layout) it is
plain SDPA.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.scoring.flex import attention_by_block

NAME = "packed_rows"
# What `mark` leaves on a mask. An attribute, because models pass masks on untouched and keep them for the recomputation
# of gradient checkpointing; one that makes a new tensor of the mask loses the mark and gets dense attention.
PIECES = "packed_pieces"

# The groups of a row: tokens of the prefix without its last, and of each continuation.
Pieces = Sequence[tuple[int, Sequence[int]]]


def mark(mask: torch.Tensor, pieces: Pieces) -> torch.Tensor:
    """Note on the dense mask [1, 1, T, T] of a packed row what the row consists of."""
    setattr(mask, PIECES, (pieces, _staircase(pieces, mask.device)))
    return mask


def attention_over_packed_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: [B, heads, T, D] in, fewer heads of keys and values, [B, T, heads, D] out."""
    if isinstance(attention_mask, BlockMask):
        output = attention_by_block(query, key, value, attention_mask, dropout=dropout, scaling=scaling)
        return output.transpose(1, 2).contiguous(), None
    marked = getattr(attention_mask, PIECES, None)
    if marked is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]  # heads of queries that share one of keys and values
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    output = attention_by_segment(query, key, value, *marked, dropout=dropout, scaling=scaling)
    return output.transpose(1, 2).contiguous(), None


def attention_by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pieces: Pieces,
    staircase: torch.Tensor,
    *,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """[B, heads, T, D] in and out: one SDPA for each prefix and each continuation of a row."""
    sizes = [size for prefix, segments in pieces for size in (prefix, *segments)]
    # One split and one concatenation: slices would each have a gradient as large as the row.
    queries, keys, values = (tensor.split(sizes, dim=2) for tensor in (query, key, value))
    longest = staircase.shape[1] - staircase.shape[0]
    steps = staircase.to(query.dtype)
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scaling}
    outputs, place = [], 0
    for prefix, segments in pieces:
        own = place
        if prefix:
            own_tokens = queries[own], keys[own], values[own]
            outputs.append(scaled_dot_product_attention(*own_tokens, is_causal=True, **options))
        else:
            outputs.append(queries[own])
        for size in segments:
            place += 1
            k = torch.cat([keys[own], keys[place]], dim=2)
            v = torch.cat([values[own], values[place]], dim=2)
            mask = steps[:size, longest - prefix : longest + size]
            outputs.append(scaled_dot_product_attention(queries[place], k, v, attn_mask=mask, **options))
        place += 1
    return torch.cat(outputs, dim=2)


def _staircase(pieces: Pieces, device: torch.device) -> torch.Tensor:
    """[S, P + S], for the longest prefix P and segment S: 0 where token i of a segment sees a token, -inf elsewhere.

    Column P is the segment's own first token, so a shorter prefix's or segment's mask is a part of it.
    """
    longest = max(prefix for prefix, _ in pieces)
    size = max(size for _, segments in pieces for size in segments)
    row = torch.arange(size, device=device)[:, None]
    column = torch.arange(longest + size, device=device)[None]
    return torch.zeros(size, longest + size, device=device).masked_fill(column - longest > row, -torch.inf)


AttentionInterface.register(NAME, attention_over_packed_rows)
AttentionMaskInterface.register(NAME, sdpa_mask)
