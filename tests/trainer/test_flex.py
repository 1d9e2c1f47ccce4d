"""FlexAttention's block masks on a CPU: the mask, the values, and the ways back. tests/gpu has what needs a GPU."""

import logging
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_mask
from torch.nn.functional import scaled_dot_product_attention

from tests.support.tiny import tiny_model
from trainer.scoring.continuations import Continuations
from trainer.scoring.flex import attention_by_block, packed_block_mask, works_on
from trainer.scoring.packing import TokenBatch, pack, packed_attention
from trainer.scoring.prepared_model import prepare_model
from trainer.scoring.support import block_obstacle

GROUPS = [Continuations([1] * p, [[2] * n for n in ns]) for p, ns in ((90, (30, 100, 7)), (1, (2, 4)), (40, (60,)))]


def ids(batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    assert batch.group_ids is not None
    assert batch.segment_ids is not None
    return batch.group_ids, batch.segment_ids


def random(heads: int, tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(1, heads, tokens, 16, generator=torch.Generator().manual_seed(seed))


def test_the_block_mask_is_the_dense_mask_and_leaves_blocks_out() -> None:
    dense = packed_attention(*ids(pack(GROUPS)))
    blocks = packed_block_mask(*ids(pack(GROUPS)))
    length = dense.shape[-1]
    assert torch.equal(create_mask(blocks.mask_mod, 1, 1, length, length, device="cpu"), dense)
    # 331 tokens are 3 x 3 blocks of 128: six below the diagonal, of which the last row's first has nothing to see.
    assert length == 331
    assert blocks.to_dense().tolist() == [[[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]]


@pytest.mark.seconds
@pytest.mark.parametrize("key_heads", [4, 2])
def test_attention_by_block_equals_dense_attention(key_heads: int) -> None:
    batch = pack(GROUPS)
    dense, length = packed_attention(*ids(batch)), batch.input_ids.shape[1]
    q, k, v = (random(heads, length, seed) for seed, heads in enumerate((4, key_heads, key_heads)))
    expected = scaled_dot_product_attention(q, k, v, attn_mask=dense, scale=0.3, enable_gqa=True)
    blocks = packed_block_mask(*ids(batch))
    torch.testing.assert_close(attention_by_block(q, k, v, blocks, scaling=0.3), expected, rtol=0, atol=1e-5)
    # With dropout, which FlexAttention lacks, it is SDPA: with next to none the same.
    dropped = attention_by_block(q, k, v, blocks, dropout=1e-9, scaling=0.3)
    torch.testing.assert_close(dropped, expected, rtol=0, atol=1e-4)
    many = attention_by_block(q, k, v, blocks, dropout=0.5, scaling=0.3)
    assert (many - expected).norm() > 0.5 * expected.norm()


@pytest.mark.seconds
def test_attention_by_block_computes_in_autocasts_type() -> None:
    batch = pack(GROUPS)
    q, k, v = (random(2, batch.input_ids.shape[1], seed) for seed in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_by_block(q, k, v.bfloat16(), packed_block_mask(*ids(batch)))
    assert found.dtype == torch.bfloat16


@pytest.mark.seconds
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_models_with_plain_attention_take_block_masks(architecture: str) -> None:
    model = tiny_model(architecture)
    assert prepare_model(model).layout == "packed"
    assert block_obstacle(model) is None


def test_a_model_that_computes_with_its_mask_keeps_dense_masks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    backbone = model.base_model.forward

    def forward(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return backbone(*args, attention_mask=attention_mask & True, **kwargs)

    monkeypatch.setattr(model.base_model, "forward", forward)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with caplog.at_level(logging.WARNING):
        prepared = prepare_model(model)
    assert prepared.layout == "packed"
    assert not prepared.block_masks
    assert "Using dense attention masks" in caplog.text
    assert "llama does not run with block masks (unsupported operand type" in caplog.text


def test_a_model_that_forgets_the_blocks_keeps_dense_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    prepare_model(model)
    backbone = model.base_model.forward

    def forward(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        mask = None if isinstance(attention_mask, BlockMask) else attention_mask
        return backbone(*args, attention_mask=mask, **kwargs)

    monkeypatch.setattr(model.base_model, "forward", forward)
    assert "gives other hidden states with block masks" in str(block_obstacle(model))


def test_a_flex_kernel_that_does_not_work_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    works_on.cache_clear()
    with caplog.at_level(logging.WARNING), torch.no_grad():  # as the start's check and the scorer call it
        # On a CPU FlexAttention has no backward pass.
        assert not works_on(torch.device("cpu"), torch.float32, 2, 2, 16)
    assert "Using dense attention masks, slower than FlexAttention, which does not work here" in caplog.text
    assert "backward on CPU" in caplog.text
