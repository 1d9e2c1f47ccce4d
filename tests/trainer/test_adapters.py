"""Ensembles of LoRA adapters: exactly the interpolation of the merged models, or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from data.models import weights_hash
from tests.support.ensembles import TOKENIZER, arguments, edit_json, ensembles, refused
from trainer.ensemble.adapters import Adapter, combine


def make_adapter(directory: Path, base: Path, seed: int, **options: Any) -> Path:
    """An adapter of the base with random weights in both factors, and the base's tokenizer as trainer.run saves it."""
    from peft import LoraConfig, get_peft_model

    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **options}
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, **options)
    )
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(str(directory))
    for name in TOKENIZER:
        shutil.copyfile(base / name, directory / name)
    return directory


def merged(base: Path, adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(torch.arange(1, 25).reshape(2, 12)).logits


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_an_ensemble_of_adapters_is_the_interpolation_of_the_merged_models(
    options: dict[str, Any], reference: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    first = make_adapter(tmp_path / "mle", reference, 1, r=2, lora_alpha=3, **options)
    second = make_adapter(tmp_path / "cpo", reference, 2)
    (found,) = ensembles(first, second, tmp_path / "out", 0.3)

    config = json.loads((found / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (6, 6, False)
    tensors = load_file(found / "adapter_model.safetensors")
    assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {6}
    assert json.loads((found / "ensemble.json").read_text())["mle"]["weights_sha256"] == weights_hash(str(first))
    assert set(TOKENIZER) < {p.name for p in found.iterdir()}

    with_adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(reference), found)
    expected = merged(reference, second)
    ours = merged(reference, first).state_dict()
    mean = {name: 0.3 * ours[name] + 0.7 * theirs for name, theirs in expected.state_dict().items()}
    base, cpo = logits(AutoModelForCausalLM.from_pretrained(reference)), logits(expected)
    expected.load_state_dict(mean)
    assert (logits(with_adapter) - logits(expected)).abs().max() < 1e-5
    assert min((logits(expected) - other).abs().max() for other in (base, cpo)) > 1e-2


def test_adapters_at_0_and_1_are_the_files_themselves(reference: Path, tmp_path: Path) -> None:
    first = make_adapter(tmp_path / "mle", reference, 1, r=2)
    second = make_adapter(tmp_path / "cpo", reference, 2)
    at_0, at_1 = ensembles(first, second, tmp_path / "out", 0, 1)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (at_0 / name).read_bytes() == (second / name).read_bytes()
        assert (at_1 / name).read_bytes() == (first / name).read_bytes()


def test_deltas_of_an_embedding_and_of_half_precision_factors_add_up_in_float32() -> None:
    torch.manual_seed(0)
    a, b = "embed.lora_embedding_A", "embed.lora_embedding_B"
    mle = Adapter("A", Path("a"), {"r": 2, "lora_alpha": 6}, {a: torch.randn(2, 9), b: torch.randn(5, 2)})
    halves = {a: torch.randn(3, 9).bfloat16(), b: torch.randn(5, 3).bfloat16()}
    cpo = Adapter("B", Path("b"), {"r": 3, "lora_alpha": 3}, halves)
    config, tensors = combine(mle, cpo, 0.25)
    assert (config["r"], config["lora_alpha"]) == (5, 5)
    expected = 0.25 * 3 * mle.tensors[b] @ mle.tensors[a] + 0.75 * halves[b].float() @ halves[a].float()
    assert tensors[a].dtype == tensors[b].dtype == torch.float32
    torch.testing.assert_close(tensors[b] @ tensors[a], expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "has use_dora = true, not plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, 'has modules_to_save = ["lm_head"], not plain LoRA'),
        ({"bias": "all"}, 'has bias = "all", not plain LoRA'),
        ({"rank_pattern": {"q_proj": 2}}, 'has rank_pattern = {"q_proj": 2}, not plain LoRA'),
        ({"alpha_pattern": {"q_proj": 2}}, 'has alpha_pattern = {"q_proj": 2}, not plain LoRA'),
        ({"init_lora_weights": "pissa"}, 'has init_lora_weights = "pissa", not plain LoRA'),
        ({"peft_type": "IA3"}, "is a IA3 adapter, not LoRA"),
        ({"a_variant_of_tomorrow": {"x": 1}}, 'has a_variant_of_tomorrow = {"x": 1}, not plain LoRA'),
        ({"base_model_name_or_path": "other/base"}, "the adapters differ in base_model_name_or_path"),
        ({"target_modules": ["q_proj"]}, "the adapters differ in target_modules"),
        ({"r": 3}, "which is not of rank 3"),
        ({"r": None}, "does not say r and lora_alpha"),
    ],
)
def test_adapters_that_cannot_be_added_exactly_are_refused(
    options: dict[str, Any], said: str, adapters: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = adapters
    shutil.copytree(second, tmp_path / "cpo")
    edit_json(tmp_path / "cpo" / "adapter_config.json", **options)
    line = refused(arguments(first, tmp_path / "cpo", tmp_path / "out", 0.5), capsys)
    assert said in line
    assert str(tmp_path / "cpo") in line
    assert not (tmp_path / "out").exists()


def test_adapters_beside_a_model_are_refused(
    adapters: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model beside them is not the base that they name: an ensemble would leave it out."""
    for name, directory in zip(("mle", "cpo"), adapters, strict=True):
        shutil.copytree(directory, tmp_path / name)
    (tmp_path / "cpo" / "model.safetensors").touch()
    line = refused(arguments(tmp_path / "mle", tmp_path / "cpo", tmp_path / "out", 0.5), capsys)
    assert f"--cpo '{tmp_path / 'cpo'}' holds a model and an adapter (adapter_config.json)" in line
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def adapters(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return make_adapter(folder / "mle", reference, 1, r=2), make_adapter(folder / "cpo", reference, 2)


def test_tensors_of_adapters_that_are_no_factors_or_do_not_fit_are_named(
    adapters: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = adapters
    tensors = load_file(second / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"

    def said(changed: dict[str, torch.Tensor]) -> str:
        shutil.copytree(second, tmp_path / "cpo", dirs_exist_ok=True)
        save_file(changed, tmp_path / "cpo" / "adapter_model.safetensors")
        return refused(arguments(first, tmp_path / "cpo", tmp_path / "out", 0.5), capsys)

    embedding = "base_model.model.model.embed_tokens.weight"
    assert f"holds '{embedding}', which is no plain LoRA factor" in said({**tensors, embedding: torch.zeros(3, 2)})
    assert f"'{name}' has shape [64, 2] in --mle" in said({**tensors, name: torch.zeros(9, 4)})
    assert f"tensor '{name}' of --mle" in said({k: t for k, t in tensors.items() if k != name})
    (tmp_path / "cpo" / "adapter_model.safetensors").rename(tmp_path / "cpo" / "adapter_model.bin")
    line = refused(arguments(first, tmp_path / "cpo", tmp_path / "out", 0.5), capsys)
    assert "has no adapter_model.safetensors" in line
    assert not (tmp_path / "out").exists()


def test_a_model_against_an_adapter_is_refused(
    mle: Path, adapters: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = adapters[1]
    line = refused(arguments(mle, adapter, tmp_path / "out"), capsys)
    assert f"--cpo '{adapter}' is a LoRA adapter and --mle '{mle}' a whole model. Merge the adapter" in line
    line = refused(arguments(adapter, mle, tmp_path / "out"), capsys)
    assert f"--mle '{adapter}' is a LoRA adapter and --cpo '{mle}' a whole model." in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_an_adapter_whose_numbers_are_not_finite_is_refused_and_not_written(
    alpha: float, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (make_adapter(tmp_path / name, reference, seed) for seed, name in enumerate(("mle", "cpo")))
    tensors = load_file(second / "adapter_model.safetensors")
    name = next(name for name in sorted(tensors) if "lora_A" in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, second / "adapter_model.safetensors", metadata={"format": "pt"})
    said = refused(arguments(first, second, tmp_path / "out", alpha), capsys)
    assert f"tensor '{name}' of the ensemble at alpha {alpha:g} would not be finite" in said
    assert not (tmp_path / "out").exists()
