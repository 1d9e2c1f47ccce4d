"""Attention segment by segment against SDPA with the dense mask, and plain SDPA where there is nothing packed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trainer.scoring.attention import attention_over_packed_rows, mark
from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import pack, packed_attention

GROUPS = [Continuations([1] * prefix, [[2] * n for n in lengths]) for prefix, lengths in ((5, (3, 1, 7)), (1, (2, 4)))]


def tensors(tokens: int, heads: int, seed: int) -> torch.Tensor:
    return torch.randn(1, heads, tokens, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("groups", [GROUPS, GROUPS[:1], GROUPS[1:]], ids=["two", "prefix", "prefix of one token"])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_attention_by_segment_equals_dense_attention_in_values_and_gradients(
    groups: list[Continuations], key_heads: int
) -> None:
    batch = pack(groups)
    assert batch.group_ids is not None
    assert batch.segment_ids is not None
    assert batch.pieces is not None
    dense = packed_attention(batch.group_ids, batch.segment_ids)
    q, k, v = (tensors(dense.shape[-1], heads, seed) for seed, heads in enumerate((4, key_heads, key_heads)))
    module: Any = SimpleNamespace(num_key_value_groups=4 // key_heads)
    expected, _ = sdpa_attention_forward(module, q, k, v, dense, scaling=0.3)
    found, _ = attention_over_packed_rows(module, q, k, v, mark(dense.clone(), batch.pieces), scaling=0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    ours, theirs = (torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (found, expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_without_a_packed_row_is_plain_sdpa(masked: bool) -> None:
    module: Any = SimpleNamespace(is_causal=True)
    q, k, v = (tensors(6, 4, seed) for seed in range(3))
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril() if masked else None
    found, _ = attention_over_packed_rows(module, q, k, v, mask)
    assert torch.equal(found, sdpa_attention_forward(module, q, k, v, mask)[0])
