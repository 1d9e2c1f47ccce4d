"""The head: log-probabilities of tokens and their gradients, in chunks, against log_softmax."""

import pytest
import torch

from trainer.scoring import head
from trainer.scoring.head import token_logps, token_logps_and_ranks


@pytest.mark.parametrize("chunk_elements", [1, 11 * 40, 1 << 20])
def test_token_logps_equal_log_softmax_across_chunk_boundaries(chunk_elements: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", head.CHUNK_ELEMENTS | {"cpu": chunk_elements})
    assert len(list(head.chunks(torch.empty(70, 4), torch.empty(11, 4)))) == {1: 3, 440: 2}.get(chunk_elements, 1)
    hidden, weight = torch.randn(70, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    targets, upstream = torch.randint(11, (70,)), torch.randn(70)
    expected = (hidden @ weight.T).log_softmax(-1)[torch.arange(70), targets]
    ours = token_logps(hidden, weight, targets)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (hidden, weight), upstream),
        torch.autograd.grad(expected, (hidden, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_elements", [1, 1 << 20])
def test_ranks_count_the_tokens_that_are_strictly_likelier(chunk_elements: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", head.CHUNK_ELEMENTS | {"cpu": chunk_elements})
    hidden, weight = torch.randint(-2, 3, (70, 4)).float(), torch.randint(-1, 2, (11, 4)).float()  # many ties
    targets, ranked = torch.randint(11, (70,)), torch.tensor([0, 3, 31, 32, 40, 69])
    logps, ranks = token_logps_and_ranks(hidden, weight, targets, ranked)
    assert logps.equal(token_logps(hidden, weight, targets))
    logits = (hidden @ weight.T).tolist()
    expected = [sum(value > logits[i][targets[i]] for value in logits[i]) for i in ranked.tolist()]
    assert ranks.tolist() == expected
    assert token_logps_and_ranks(hidden, weight, targets, head.NO_POSITIONS)[1].tolist() == []
    tied, each = torch.tensor([[3.0, 1.0, 3.0, 2.0]]).repeat(4, 1), torch.arange(4)
    assert head.target_ranks(tied, each, each).tolist() == [0, 3, 0, 2]


def test_token_logps_match_finite_differences(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", head.CHUNK_ELEMENTS | {"cpu": 1})
    hidden = torch.randn(35, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(7, (35,))
    assert torch.autograd.gradcheck(lambda h, w: token_logps(h, w, targets), (hidden, weight))


def test_token_logps_need_no_gradient_for_a_frozen_head():
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(11, 4)
    token_logps(hidden, weight, torch.arange(5)).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_token_logps_refuse_a_second_derivative():
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(11, 4)
    value = token_logps(hidden, weight, torch.arange(5)).square().sum()
    (gradient,) = torch.autograd.grad(value, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_head_gradient_does_not_lose_small_terms_over_many_chunks(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", head.CHUNK_ELEMENTS | {"cpu": 1})  # 32 rows per chunk
    hidden, weight = torch.ones(32 * 64, 1, dtype=dtype), torch.zeros(2, 1, dtype=dtype, requires_grad=True)
    # p = 1/2 everywhere: a row's gradient is +-1/2. The first chunk adds 1600, each other one 1/2: 1631.5 in all.
    upstream = torch.full((32 * 64,), 1 / 32)
    upstream[:32] = 100.0
    logps = token_logps(hidden, weight, torch.zeros(32 * 64, dtype=torch.long))
    (gradient,) = torch.autograd.grad(logps, weight, upstream)
    assert gradient.dtype == dtype
    assert gradient.tolist() == torch.tensor([[1631.5], [-1631.5]], dtype=dtype).tolist()


def test_token_logps_of_bfloat16_are_reduced_in_float32():
    hidden, weight = torch.randn(50, 16).bfloat16(), torch.randn(200, 16).bfloat16()
    targets = torch.randint(200, (50,))
    logps = token_logps(hidden, weight, targets)
    assert logps.dtype == torch.float32
    expected = (hidden @ weight.T).float().log_softmax(-1)[torch.arange(50), targets]
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-5)
