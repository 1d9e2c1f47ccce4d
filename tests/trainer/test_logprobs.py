"""Log-probabilities against a plain computation, one continuation at a time, per architecture and wrapper."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.plain import GROUPS, draw, packed_logps, plain_logps
from tests.support.tiny import tiny_model
from trainer.scoring import prepared_model
from trainer.scoring.attention import NAME as PACKED_ROWS
from trainer.scoring.continuations import Continuations
from trainer.scoring.head import token_logps
from trainer.scoring.packing import lay_out, pack
from trainer.scoring.prepared_model import candidate_logps, prepare_model
from trainer.scoring.scorer import Scorer

ARCHITECTURES = pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
TOKENS = torch.tensor([[4, 1, 7], [3, 5, 1], [2, 1, 1]])


def gradients(model: nn.Module, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of a sum with unequal weights, so that no continuation can stand in for another."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = torch.linspace(0.5, 1.5, logps.numel()).view_as(logps)
    return dict(zip(named, torch.autograd.grad((weights * logps).sum(), list(named.values())), strict=True))


def assert_same_gradients(model: nn.Module, logps: torch.Tensor, expected: torch.Tensor) -> None:
    ours, plain = gradients(model, logps), gradients(model, expected)
    assert max(g.abs().max() for g in plain.values()) > 1e-2
    floor = 1e-6 * max(g.abs().max() for g in plain.values())  # some gradients are zero but for rounding (key biases)
    for name, gradient in plain.items():
        assert (ours[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + floor, name


@ARCHITECTURES
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_one_by_one_in_values_and_gradients(architecture: str, attention: str):
    model = tiny_model(architecture)
    model.set_attn_implementation(attention)
    assert prepare_model(model).layout == "packed"
    assert model.config._attn_implementation == {"sdpa": PACKED_ROWS}.get(attention, attention)
    logps, expected = packed_logps(model), plain_logps(model)
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-4)
    assert_same_gradients(model, logps, expected)


@ARCHITECTURES
def test_gradient_checkpointing_changes_neither_values_nor_gradients(architecture: str):
    model = tiny_model(architecture)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    prepare_model(model)
    expected = plain_logps(model)
    model.gradient_checkpointing_enable()
    model.train()
    calls: list[int] = []
    first = next(module for name, module in model.named_modules() if name.endswith("mlp"))
    first.register_forward_pre_hook(lambda *_: calls.append(1))
    logps = packed_logps(model)
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-4)
    assert_same_gradients(model, logps, expected)
    assert len(calls) == 2  # once forward, once recomputed


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_lora_adapters_count_and_receive_gradients(targets: list[str]):
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama")
    prepared = prepare_model(model)
    base = plain_logps(model).detach()
    wrapped: Any = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()
    logps, expected = candidate_logps(prepared.of(wrapped), pack(GROUPS)), plain_logps(wrapped)
    assert (expected - base).abs().max() > 0.1
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-4)
    assert all("lora_" in name for name in gradients(wrapped, logps))
    assert_same_gradients(wrapped, candidate_logps(prepared.of(wrapped), pack(GROUPS)), plain_logps(wrapped))


@ARCHITECTURES
def test_bfloat16_stays_within_a_hundredth_of_a_nat_per_token(architecture: str):
    model = tiny_model(architecture).bfloat16()
    assert prepare_model(model).layout == "packed"
    logps = packed_logps(model)
    assert logps.dtype == torch.float32
    assert ((logps - plain_logps(model)).abs() / TOKENS).max() < 0.01
    assert ((logps - plain_logps(model.float())).abs() / TOKENS).max() < 0.01


@ARCHITECTURES
def test_bfloat16_gradients_stay_within_two_hundredths_of_float32s(architecture: str):
    """The plain computation's in bfloat16 are off by 1% here, eight bits, 2^-8, over two layers; ours are as near."""
    exact = tiny_model(architecture)
    expected = gradients(exact, plain_logps(exact))
    model = tiny_model(architecture).bfloat16()
    prepare_model(model)
    found, plain = gradients(model, packed_logps(model)), gradients(model, plain_logps(model))
    off, plainly_off = (
        torch.cat([(g[n].float() - e).flatten() for n, e in expected.items()]).norm() for g in (found, plain)
    )
    norm = torch.cat([e.flatten() for e in expected.values()]).norm()
    assert off < 0.02 * norm
    assert off < 1.2 * plainly_off


def test_autocast_to_bfloat16_stays_within_a_hundredth_of_a_nat_per_token(monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("llama")
    prepare_model(model)
    dtypes = []
    monkeypatch.setattr(prepared_model, "token_logps", lambda h, *more: dtypes.append(h.dtype) or token_logps(h, *more))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = packed_logps(model)
    assert dtypes == [torch.bfloat16]  # the norm before the head leaves float32
    assert logps.dtype == torch.float32
    assert ((logps - plain_logps(model)).abs() / TOKENS).max() < 0.01


def test_laying_out_covers_every_group_once_and_passes_stay_within_the_budget():
    groups = [Continuations(draw(4), [draw(n), draw(3)]) for n in (1, 9, 2, 30, 4)]
    packed, padded = list(lay_out(groups, "packed", 23)), list(lay_out(groups, "padded", 55))
    assert [indices for indices, _ in packed] == [[0, 1], [2], [3], [4]]  # 7 + 15, 8, 36 (alone), 10 tokens
    assert [batch.input_ids.shape for _, batch in packed] == [(1, 22), (1, 8), (1, 36), (1, 10)]
    # Two rows per group, of 7, 13, 7, 34 and 8 tokens: 4 x 13 = 52 fit, 6 x 13 do not; 2 x 34 are alone.
    assert [indices for indices, _ in padded] == [[0, 1], [2], [3], [4]]
    assert [batch.input_ids.shape for _, batch in padded] == [(4, 13), (2, 7), (2, 34), (2, 8)]


def test_scorer_keeps_the_order_of_groups_and_one_number_per_continuation():
    model = tiny_model("qwen2")
    lengths = ((9, (8, 2)), (2, (1,)), (5, (3, 12, 4)), (1, (2, 2)), (7, (6,)))
    groups = [Continuations(draw(p), [draw(n) for n in ns]) for p, ns in lengths]
    expected = plain_logps(model, groups)
    for row_tokens in (18, 4096):
        scores = Scorer(prepare_model(model), row_tokens).score(groups)
        assert [len(row) for row in scores] == [2, 1, 3, 2, 1]
        for row, values in zip(scores, expected.tolist(), strict=True):
            assert row == pytest.approx(values[: len(row)], abs=1e-4)
    assert Scorer(prepare_model(model)).score([]) == []


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_scorer_ranks_the_first_continuation_of_the_groups_that_are_asked_for(layout: str):
    model = tiny_model("llama")
    lengths = ((9, (8, 2)), (2, (1,)), (5, (3, 12, 4)), (1, (2, 2)), (7, (6,)))
    groups = [Continuations(draw(p), [draw(n) for n in ns]) for p, ns in lengths]
    expected = []
    for group in groups:
        ids = torch.tensor(group.continuations[0])
        logits = model(input_ids=torch.tensor([[*group.prefix, *ids]])).logits[0, len(group.prefix) - 1 : -1]
        expected.append(int((logits > logits.gather(-1, ids[:, None])).sum(-1).max()))
    assert len(set(expected)) > 2
    scorer = Scorer(replace(prepare_model(model), layout=layout), 40)
    asked = [True, False, True, True, False]
    scores, ranks = scorer.score_and_rank(groups, asked)
    assert ranks == [rank if wanted else None for rank, wanted in zip(expected, asked, strict=True)]
    assert scores == scorer.score(groups)
    assert scorer.score_and_rank([], []) == ([], [])


def test_scorer_loads_a_saved_model(tmp_path: Path):
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path)
    scorer = Scorer.load(str(tmp_path), device="cpu")
    assert (scorer.layout, scorer.model.training, scorer.model.dtype) == ("packed", False, torch.float32)
    for row, values in zip(scorer.score(GROUPS), plain_logps(model).tolist(), strict=True):
        assert row == pytest.approx(values[: len(row)], abs=1e-4)
    assert Scorer.load(str(tmp_path), dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16
