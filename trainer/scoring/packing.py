"""Groups of token sequences as tensors: K continuations of one prefix in one packed sequence.

Layout of a group in a row: the prefix without its last token, then one segment per
continuation, which begins with its own copy of the prefix's last token and ends before the continuation's last:

    prefix p1 p2 p3, continuations a1 a2 | b1 b2 b3

    tokens     p1 p2 | p3 a1 | p3 b1 b2
    positions   0  1 |  2  3 |  2  3  4
    predicts   -  -  | a1 a2 | b1 b2 b3

A token attends causally to its own prefix and to its own segment. So the prefix is computed once for all
continuations, each position has one next-token target, nothing is padded, and several groups share a row.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.scoring.continuations import Continuations

PREFIX_SEGMENT = 0


@dataclass
class TokenBatch:
    """Token sequences of some groups, and where in them which continuation is predicted.

    B rows, T positions, N predicted tokens, G groups with up to K continuations each.

    Attributes:
        input_ids: [B, T].
        position_ids: [B, T], counted from the start of each prefix.
        attention_mask: padded layout: [B, T], 1 where there is a token. Packed layout: None.
        group_ids, segment_ids: packed layout: [B, T], which group, and 0 for the prefix or 1 + k.
        pieces: packed layout: per group in the row, tokens of the prefix without its last and of each continuation.
        target_ids: [N], the tokens predicted.
        target_index: [N], the position in the flattened [B * T] that predicts each.
        slot: [N], the continuation in the flattened [G * K] that each belongs to.
        mask: [G, K], True where a continuation exists.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    target_ids: torch.Tensor
    target_index: torch.Tensor
    slot: torch.Tensor
    mask: torch.Tensor
    attention_mask: torch.Tensor | None = None
    group_ids: torch.Tensor | None = None
    segment_ids: torch.Tensor | None = None
    pieces: list[tuple[int, list[int]]] | None = None

    def to(self, device: torch.device | str) -> "TokenBatch":
        def move(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value

        return TokenBatch(**{field.name: move(getattr(self, field.name)) for field in dataclasses.fields(self)})

    @property
    def padding(self) -> int:
        """Number of positions that hold no token."""
        return 0 if self.attention_mask is None else int((self.attention_mask == 0).sum())

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each continuation, [G, K]; 0 where there is none."""
        return self.slot.bincount(minlength=self.mask.numel()).view(self.mask.shape)


def split_by_budget(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Indices of the groups that share a row, in order; a group over the budget gets a row of its own."""
    rows: list[list[int]] = []
    used = 0
    for index, length in enumerate(lengths):
        if not rows or used + length > row_tokens:
            rows.append([])
            used = 0
        rows[-1].append(index)
        used += length
    return rows


def split_padded(groups: Sequence[Continuations], row_tokens: int) -> list[list[int]]:
    """Like `split_by_budget`, for the padded layout: all rows of a pass are as long as its longest sequence."""
    passes: list[list[int]] = []
    rows = longest = 0
    for index, group in enumerate(groups):
        rows, longest = rows + len(group.continuations), max(longest, group.longest)
        if not passes or rows * longest > row_tokens:
            passes.append([])
            rows, longest = len(group.continuations), group.longest
        passes[-1].append(index)
    return passes


def pack(groups: Sequence[Continuations]) -> TokenBatch:
    """All groups in one packed row (B = 1). Raises ValueError for an empty prefix or continuation."""
    _check(groups)
    width = max(len(g.continuations) for g in groups)
    tokens: list[np.ndarray] = []
    pieces: list[tuple[int, int, int, int]] = []  # start position, length, group, segment
    target_ids: list[np.ndarray] = []
    target_index: list[np.ndarray] = []
    slots: list[tuple[int, int]] = []
    used = 0
    for g, group in enumerate(groups):
        prefix = np.asarray(group.prefix, dtype=np.int64)
        last = len(prefix) - 1
        tokens.append(prefix[:last])
        pieces.append((0, last, g, PREFIX_SEGMENT))
        used += last
        for k, continuation in enumerate(group.continuations):
            ids = np.asarray(continuation, dtype=np.int64)
            tokens += [prefix[last:], ids[:-1]]
            pieces.append((last, len(ids), g, 1 + k))
            target_ids.append(ids)
            target_index.append(np.arange(used, used + len(ids)))
            slots.append((g * width + k, len(ids)))
            used += len(ids)
    lengths = np.array([length for _, length, _, _ in pieces])
    positions = np.concatenate([np.arange(start, start + length) for start, length, _, _ in pieces])
    return TokenBatch(
        input_ids=torch.from_numpy(np.concatenate(tokens))[None],
        position_ids=torch.from_numpy(positions)[None],
        target_ids=torch.from_numpy(np.concatenate(target_ids)),
        target_index=torch.from_numpy(np.concatenate(target_index)),
        slot=_repeat(slots),
        mask=_existing(groups, width),
        group_ids=torch.from_numpy(np.repeat([g for _, _, g, _ in pieces], lengths))[None],
        segment_ids=torch.from_numpy(np.repeat([s for _, _, _, s in pieces], lengths))[None],
        pieces=[(len(group.prefix) - 1, [len(c) for c in group.continuations]) for group in groups],
    )


def pad(groups: Sequence[Continuations]) -> TokenBatch:
    """One padded row per continuation: the plain layout, for models that cannot take the packed mask."""
    _check(groups)
    width = max(len(g.continuations) for g in groups)
    rows = [(np.concatenate([g.prefix, c]), len(g.prefix), len(c)) for g in groups for c in g.continuations]
    longest = max(len(row) for row, _, _ in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), longest, dtype=torch.long)
    target_ids: list[np.ndarray] = []
    target_index: list[np.ndarray] = []
    for b, (row, start, length) in enumerate(rows):
        input_ids[b, : len(row)] = torch.from_numpy(row)
        attention_mask[b, : len(row)] = 1
        target_ids.append(row[start:].astype(np.int64))
        target_index.append(b * longest + np.arange(start - 1, start - 1 + length))
    slots = [(g * width + k, len(c)) for g, group in enumerate(groups) for k, c in enumerate(group.continuations)]
    return TokenBatch(
        input_ids=input_ids,
        position_ids=torch.arange(longest).expand(len(rows), -1).contiguous(),
        target_ids=torch.from_numpy(np.concatenate(target_ids)),
        target_index=torch.from_numpy(np.concatenate(target_index)),
        slot=_repeat(slots),
        mask=_existing(groups, width),
        attention_mask=attention_mask,
    )


def lay_out(groups: Sequence[Continuations], layout: str, row_tokens: int) -> Iterator[tuple[list[int], TokenBatch]]:
    """Groups in a layout, "packed" or "padded": (indices of the groups, their tensors) per forward pass."""
    packed = layout == "packed"
    passes = (
        split_by_budget([g.packed_length for g in groups], row_tokens) if packed else split_padded(groups, row_tokens)
    )
    for indices in passes:
        chosen = [groups[i] for i in indices]
        yield indices, pack(chosen) if packed else pad(chosen)


def packed_attention(group_ids: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
    """The attention mask of packed rows: [B, T] and [B, T] in, boolean [B, 1, T, T] out, True = may attend."""
    length = group_ids.shape[-1]
    order = torch.arange(length, device=group_ids.device)
    causal = order[:, None] >= order[None, :]
    same_group = group_ids[:, :, None] == group_ids[:, None, :]
    own_segment = segment_ids[:, :, None] == segment_ids[:, None, :]
    to_prefix = (segment_ids == PREFIX_SEGMENT)[:, None, :]
    return (causal & same_group & (own_segment | to_prefix))[:, None]


def _check(groups: Sequence[Continuations]) -> None:
    for group in groups:
        if not len(group.prefix):
            raise ValueError("a group has an empty prefix; a continuation needs at least one token before it")
        if not group.continuations or any(not len(c) for c in group.continuations):
            raise ValueError("a group has no continuation, or an empty one")


def _repeat(slots: list[tuple[int, int]]) -> torch.Tensor:
    return torch.from_numpy(np.repeat([s for s, _ in slots], [n for _, n in slots]))


def _existing(groups: Sequence[Continuations], width: int) -> torch.Tensor:
    counts = torch.tensor([len(g.continuations) for g in groups])
    return torch.arange(width)[None] < counts[:, None]
