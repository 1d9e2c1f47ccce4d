"""Preparing a model: which layout the probe finds for which architecture, and a patch that changes nothing else."""

import copy
import inspect
import logging
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.plain import GROUPS, draw, packed_logps, plain_logps
from tests.support.tiny import tiny_model
from trainer.scoring.packing import pack, pad
from trainer.scoring.prepared_model import candidate_logps, prepare_model
from trainer.scoring.scorer import Scorer

ARCHITECTURES = pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
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
    """A model like `tiny_model`, of any architecture; scale 1 is the architecture's own initialisation."""
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
