"""Log-probabilities against a plain computation, one continuation at a time, per architecture and wrapper."""

import copy
import inspect
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.plain import GROUPS, draw, plain_logps
from tests.support.tiny import tiny_model
from trainer.scoring import head, prepared_model
from trainer.scoring.attention import NAME as PACKED_ROWS
from trainer.scoring.head import token_logps
from trainer.scoring.packing import Continuations, lay_out, pack, pad
from trainer.scoring.prepared_model import candidate_logps, prepare_model
from trainer.scoring.scorer import Scorer

ARCHITECTURES = pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
TOKENS = torch.tensor([[4, 1, 7], [3, 5, 1], [2, 1, 1]])


def gradients(model: nn.Module, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a sum with unequal weights, so that no continuation can stand in for another."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = torch.linspace(0.5, 1.5, logps.numel()).view_as(logps)
    return dict(zip(named, torch.autograd.grad((weights * logps).sum(), list(named.values())), strict=True))


def packed_logps(model: Any) -> torch.Tensor:
    """Of a model that is prepared, or gets prepared now."""
    return candidate_logps(prepare_model(model), pack(GROUPS))


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


SIZE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2} | {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
# What the config says, and what the probe has to find out.
KNOWN: dict[str, tuple[str, dict[str, Any], str]] = {
    "mistral": ("mistral", SIZE | {"sliding_window": 8}, "sliding window of 8 tokens"),
    "gpt_neo": (
        "gpt_neo",
        {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
        | {"window_size": 8, "intermediate_size": 128},
        "sliding window of 8 tokens",
    ),
    "chunks": (
        "llama4_text",
        SIZE
        | {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 8}
        # No mixture of experts, which is not what this is about.
        | {"moe_layers": [], "intermediate_size_mlp": 128},
        "within chunks of 8 tokens",
    ),
    "longrope": (
        "phi3",
        SIZE
        | {"max_position_embeddings": 128, "original_max_position_embeddings": 64}
        | {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16}},
        "the 'longrope' RoPE of phi3 takes its frequencies from the longest position",
    ),
    "dynamic": (
        "llama",
        SIZE | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "the 'dynamic' RoPE of llama takes its frequencies from the longest position",
    ),
    "gptj": ("gptj", {"n_embd": 64, "n_layer": 2, "n_head": 2, "rotary_dim": 16}, "not a plain linear map"),
}
PROBED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 2}, "does not run with a 4-D mask"),
    "scaled logits": ("granite", SIZE | {"logits_scaling": 4.0}, "are not its head applied to its hidden states"),
    "softcapped logits": (
        "gemma2",
        SIZE | {"layer_types": ["full_attention"] * 2, "query_pre_attn_scalar": 32},
        "are not its head applied to its hidden states",
    ),
    "convolution": (
        "lfm2",
        SIZE | {"layer_types": ["conv", "full_attention"]},
        "packed continuations see one another",
    ),
    "alibi": ("mpt", {"d_model": 64, "n_layers": 2, "n_heads": 2, "max_seq_len": 128}, "no attention to position_ids"),
}


def model_of(kind: str, scale: float = 3.0, **settings: Any) -> Any:
    """As `tiny_model`, of any architecture; scale 1 is the architecture's own initialisation."""
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(common | settings)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.dim() > 1 else 1.0)
    return model.eval()


@pytest.mark.parametrize("case", KNOWN | PROBED)
def test_a_model_that_cannot_take_the_packed_layout_falls_back_and_says_why(
    case: str, caplog: pytest.LogCaptureFixture
):
    kind, settings, reason = (KNOWN | PROBED)[case]
    model = model_of(kind, **settings)
    expected = plain_logps(model).detach()
    with caplog.at_level(logging.WARNING, logger="trainer.scoring.support"):
        assert prepare_model(model).layout == "padded"
    (record,) = (r for r in caplog.records if r.name == "trainer.scoring.support")
    assert "padded layout" in record.getMessage()
    assert reason in record.getMessage()
    torch.testing.assert_close(candidate_logps(prepare_model(model), pad(GROUPS)), expected, rtol=0, atol=1e-4)
    assert Scorer(prepare_model(model)).score(GROUPS)[1] == pytest.approx(expected[1, :2].tolist(), abs=1e-4)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])


@DTYPES
@pytest.mark.parametrize("case", PROBED)
def test_the_probe_is_as_sharp_on_untrained_models_in_low_precision(
    case: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
):
    kind, settings, reason = PROBED[case]
    assert prepare_model(model_of(kind, scale=1.0, **settings).to(dtype)).layout == "padded"
    assert reason in caplog.text


@DTYPES
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "qwen3", "gpt_neox", "opt", "olmo2", "qwen3_moe"])
def test_the_probe_lets_sound_models_pass(kind: str, scale: float, dtype: torch.dtype):
    sizes: dict[str, dict[str, Any]] = {
        "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2},
        "opt": SIZE | {"ffn_dim": 128, "word_embed_proj_dim": 64},
        "qwen3_moe": SIZE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    }
    assert prepare_model(model_of(kind, scale, **sizes.get(kind, SIZE)).to(dtype)).layout == "packed"


def all_before(mask: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(mask).tril()


def only_itself(mask: torch.Tensor) -> torch.Tensor:
    return torch.eye(mask.shape[-1], dtype=torch.bool).expand(mask.shape)


def only_the_last_few(mask: torch.Tensor) -> torch.Tensor:
    return mask & torch.ones_like(mask).triu(-6)


@DTYPES
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"attention_mask": all_before}, "in llama, packed continuations see one another"),
        ({"attention_mask": only_itself}, "in llama, a packed continuation does not see its own tokens"),
        ({"attention_mask": only_the_last_few}, "llama gives other hidden states in the packed layout"),
        ({"position_ids": torch.zeros_like}, "llama pays no attention to position_ids"),
    ],
    ids=["all before", "only itself", "only the last few", "no positions"],
)
def test_each_fault_in_the_packed_pass_is_caught_by_name(
    spoil: dict[str, Any], reason: str, scale: float, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
):
    def spoiled(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        packed = kwargs["attention_mask"].dim() == 4
        return args, kwargs | ({name: fault(kwargs[name]) for name, fault in spoil.items()} if packed else {})

    model = tiny_model("llama", scale=scale).to(dtype)
    model.model.register_forward_pre_hook(spoiled, with_kwargs=True)
    assert prepare_model(model).layout == "padded"
    assert reason in caplog.text


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_wrong_positions_are_caught_although_the_model_heeds_them(scale: float, caplog: pytest.LogCaptureFixture):
    def spoiled(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        packed = kwargs["attention_mask"].dim() == 4
        return args, kwargs | ({"position_ids": 3 * kwargs["position_ids"]} if packed else {})

    model = tiny_model("llama", scale=scale)
    model.model.register_forward_pre_hook(spoiled, with_kwargs=True)
    assert prepare_model(model).layout == "padded"
    assert "llama gives other hidden states in the packed layout" in caplog.text


def test_a_model_whose_own_forward_fails_is_not_blamed_on_the_mask():
    model = tiny_model("llama")
    model.model.layers[0].mlp.down_proj = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        prepare_model(model)


@ARCHITECTURES
def test_preparing_changes_neither_forward_nor_generate_nor_mode(architecture: str):
    model = tiny_model(architecture)
    ids = torch.tensor([draw(5)])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    logits, generated = model(input_ids=ids).logits, model.generate(ids, **options)
    model.train()
    prepare_model(model)
    assert model.training
    model.eval()
    assert torch.equal(model(ids).logits, logits)
    assert torch.equal(model.generate(ids, **options), generated)


def test_preparing_a_model_twice_patches_it_once():
    model = tiny_model("gpt2")
    assert prepare_model(model).layout == "packed"
    forward = model.forward
    assert prepare_model(model).layout == "packed"
    assert model.forward == forward
    torch.testing.assert_close(packed_logps(model), plain_logps(model), rtol=0, atol=1e-4)


def test_a_patch_that_was_taken_off_is_put_back():
    model = tiny_model("llama")
    prepare_model(model)
    del model.forward
    assert prepare_model(model).layout == "packed"
    torch.testing.assert_close(packed_logps(model), plain_logps(model), rtol=0, atol=1e-4)


def test_the_patch_survives_accelerate_and_is_not_put_on_twice():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model = tiny_model("llama")
    prepared = prepare_model(model)
    expected = packed_logps(model).detach()
    # One state per process: a trainer of an earlier test may have set another precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    wrapped = accelerator.prepare_model(model)
    forward = wrapped.forward
    assert prepare_model(wrapped).layout == "packed"
    assert wrapped.forward is forward or wrapped.forward == forward
    assert (candidate_logps(prepared.of(wrapped), pack(GROUPS)) - expected).abs().max() > 1e-4  # autocast to bfloat16
    unwrapped = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    assert torch.equal(packed_logps(unwrapped), expected)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_patched_forward_shows_the_signature_of_the_models_own():
    model = tiny_model("llama")
    signature = inspect.signature(model.forward)
    prepare_model(model)
    assert inspect.signature(model.forward) == signature


def test_a_deep_copy_uses_its_own_weights():
    model = tiny_model("llama")
    prepare_model(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.get_output_embeddings().weight.mul_(0.5)
    logps = packed_logps(twin)
    torch.testing.assert_close(logps, plain_logps(twin), rtol=0, atol=1e-4)
    assert (logps - packed_logps(model)).abs().max() > 0.1


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
    """As near as the plain computation's in bfloat16, which are off by 1% here: eight bits, 2^-8, over two layers."""
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


def test_scorer_loads_a_saved_model(tmp_path: Path):
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path)
    scorer = Scorer.load(str(tmp_path), device="cpu")
    assert (scorer.layout, scorer.model.training, scorer.model.dtype) == ("packed", False, torch.float32)
    for row, values in zip(scorer.score(GROUPS), plain_logps(model).tolist(), strict=True):
        assert row == pytest.approx(values[: len(row)], abs=1e-4)
    assert Scorer.load(str(tmp_path), dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16
