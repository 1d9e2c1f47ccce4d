"""What is one model: hashes over what it computes with, and over all that decides what it makes of a text."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.command.errors import UserError
from data.model_settings import (
    check_tokenizer_fits,
    config_hash,
    config_words_hash,
    settings_hash,
    text_model_identity,
)
from data.models import check_model, hash_of_all_weights, weights_hash
from data.shards import NegativeSet
from evaluation.answers.cache import Store
from evaluation.judging.reward_judge import RewardJudge
from evaluation.metrics.embeddings import _identify
from evaluation.metrics.features import Featuriser
from evaluation.metrics.likelihood import SecondModel
from tests.support.tiny import make_negative_set, tiny_model

WEIGHTS = "model.safetensors"


def resaved(model: Path, directory: Path, **more: torch.Tensor) -> str:
    """A copy of a model whose file holds more tensors; a dot in their names is written __."""
    shutil.copytree(model, directory)
    tensors = load_file(model / WEIGHTS)
    save_file({**tensors, **{name.replace("__", "."): value for name, value in more.items()}}, directory / WEIGHTS)
    return str(directory)


def embedding_of(model: Path) -> torch.Tensor:
    return load_file(model / WEIGHTS)["model.embed_tokens.weight"].clone()


def test_a_head_that_is_the_embedding_again_and_old_buffers_change_no_identity(reference: Path, tmp_path: Path) -> None:
    assert "lm_head.weight" not in load_file(reference / WEIGHTS)
    more = {
        "lm_head__weight": embedding_of(reference),
        "model__layers__0__self_attn__rotary_emb__inv_freq": torch.rand(16),
        "model__layers__0__attn__bias": torch.ones(1, 1, 8, 8),
        "model__layers__0__attn__masked_bias": torch.tensor(-1e4),
    }
    assert weights_hash(resaved(reference, tmp_path / "more", **more)) == weights_hash(str(reference))


@pytest.mark.parametrize("name", ["lm_head__weight", "model__layers__0__attn__bias", "model__extra__weight"])
def test_a_tensor_that_is_computed_with_counts(reference: Path, tmp_path: Path, name: str) -> None:
    """A head of its own, a bias, and anything that is not known."""
    value = embedding_of(reference) + 1 if name.startswith("lm_head") else torch.ones(8)
    assert weights_hash(resaved(reference, tmp_path / "more", **{name: value})) != weights_hash(str(reference))


def test_a_head_counts_where_the_config_says_that_it_is_not_tied(reference: Path, tmp_path: Path) -> None:
    path = tmp_path / "more"
    resaved(reference, path, lm_head__weight=embedding_of(reference))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert weights_hash(str(path)) != weights_hash(str(reference))


def test_the_hash_of_a_model_without_such_tensors_is_what_it_always_was(tmp_path: Path) -> None:
    """Sets hold the hash: it is over name, dtype, shape and bytes of each tensor, in the order of the names."""
    import hashlib

    tiny_model("qwen2").save_pretrained(tmp_path)
    digest = hashlib.sha256()
    for name, value in sorted(load_file(tmp_path / WEIGHTS).items()):
        digest.update(json.dumps([name, "F32", list(value.shape)]).encode() + value.numpy().tobytes())
    assert weights_hash(str(tmp_path)) == digest.hexdigest()


def test_sets_from_before_0_6_have_the_hash_of_all_tensors_of_their_reference(reference: Path, tmp_path: Path) -> None:
    path = resaved(reference, tmp_path / "more", model__layers__0__attn__bias=torch.ones(1, 1, 8, 8))
    make_negative_set(tmp_path / "set", Path(path), num_groups=2, num_negatives=1)
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    manifest["job"]["model"]["weights_sha256"] = hash_of_all_weights(path)
    (tmp_path / "set/manifest.json").write_text(json.dumps(manifest))
    negatives, other = NegativeSet(str(tmp_path / "set")), str(reference)
    negatives.check_reference(weights_hash(path), path, lambda: hash_of_all_weights(path))
    assert hash_of_all_weights(path) != weights_hash(path) == weights_hash(other) == hash_of_all_weights(other)
    with pytest.raises(UserError, match="was made with reference model"):
        negatives.check_reference(weights_hash(other), other, lambda: hash_of_all_weights(other))


# All that decides what a model makes of a text


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("1_Pooling/config.json", "true", "false"),
        ("modules.json", "Normalize", "Dropout"),
        ("config.json", '"gelu"', '"relu"'),
        ("tokenizer.json", '"[CLS]"', '"[SEP]"'),
        ("sentence_bert_config.json", "256", "64"),
    ],
)
def test_whatever_decides_a_vector_decides_the_identity(minilm: Path, file: str, old: str, new: str) -> None:
    before, path = text_model_identity(str(minilm)), minilm / file
    content = path.read_text()
    changed = re.sub(re.escape(old), new, content, count=1)
    assert changed != content
    path.write_text(changed)
    after = text_model_identity(str(minilm))
    assert after["weights_sha256"] == before["weights_sha256"]
    assert after["settings_sha256"] != before["settings_sha256"]


def test_the_place_of_a_text_model_and_records_of_its_training_decide_nothing(minilm: Path, tmp_path: Path) -> None:
    before = text_model_identity(str(minilm))
    for name in ("README.md", "trainer_state.json", "generation_config.json", "all_results.json"):
        (minilm / name).write_text("{}")
    assert text_model_identity(str(minilm.rename(tmp_path / "moved"))) == before


def test_code_that_comes_with_a_model_decides_its_identity(minilm: Path) -> None:
    before = text_model_identity(str(minilm)), config_hash(minilm)
    (minilm / "modeling_own.py").write_text("SCALE = 2")
    assert text_model_identity(str(minilm)) != before[0]
    assert config_hash(minilm) != before[1]


@pytest.mark.parametrize(
    ("changed", "same"),
    [({"rms_norm_eps": 0.5}, False), ({"transformers_version": "4.0"}, True), ({"_name_or_path": "there"}, True)],
)
def test_a_reference_is_its_config_too_save_for_who_saved_it(
    reference: Path, tmp_path: Path, changed: dict[str, Any], same: bool
) -> None:
    config = {**json.loads((reference / "config.json").read_text()), **changed}
    (tmp_path / "config.json").write_text(json.dumps(config))  # on one line, unlike the other
    assert (config_hash(tmp_path) == config_hash(reference)) is same


OF_THE_HUB = {
    "llama": {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, "torch_dtype": "bfloat16"},
    "qwen2": {"rope_theta": 1000000, "sliding_window": 32768, "use_sliding_window": False, "use_cache": False},
    "gpt2": {"n_ctx": 1024, "n_layer": 2, "task_specific_params": {"text-generation": {"max_length": 50}}},
    "gpt_neox": {"num_hidden_layers": 2, "rotary_pct": 0.25, "rotary_emb_base": 20000, "torch_dtype": "float16"},
    "of_its_own": {"width": 3, "dropout": None, "architectures": ["Own"]},
}  # fmt: skip


@pytest.mark.parametrize("kind", [*OF_THE_HUB][:-1])
def test_a_copy_that_transformers_saved_is_the_same_reference(kind: str, tmp_path: Path) -> None:
    """transformers writes other names (dtype, rope_parameters) and all that the hub's file leaves out."""
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "architectures": None, **OF_THE_HUB[kind]}))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "copy")
    copied = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert copied != json.loads((tmp_path / "config.json").read_text())
    assert config_hash(tmp_path / "copy") == config_hash(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changed", "same"),
    [
        ("llama", {"rope_theta": 10000.0}, False),
        ("llama", {"rope_scaling": None}, False),
        ("llama", {"dtype": "float32", "use_cache": False, "eos_token_id": 7, "attention_bias": False}, True),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, False),
        ("gpt2", {"layer_norm_epsilon": 0.00001, "n_inner": None}, True),
        ("llama", {"rope_parameters": {}}, True),
        ("mistral", {"sliding_window": None}, False),  # null, where its class has 4096
        ("of_its_own", {"dropout": 0.1}, False),
        ("of_its_own", {"width": 3.0, "more": None, "architectures": ["Other"]}, True),
    ],
)
def test_what_config_json_says_beyond_the_defaults_decides(
    kind: str, changed: dict[str, Any], same: bool, tmp_path: Path
) -> None:
    config, hashes = {"model_type": kind, **OF_THE_HUB.get(kind, {})}, []
    for said in (config, config | changed):
        (tmp_path / "config.json").write_text(json.dumps(said))
        hashes.append(config_hash(tmp_path))
    assert (hashes[0] == hashes[1]) is same


def test_a_hash_of_the_words_of_config_json_is_taken_too(reference: Path, tmp_path: Path) -> None:
    """Manifests have it from before config.json was read as transformers understands it."""
    config = json.loads((reference / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = {key: value for key, value in config.items() if key not in ("transformers_version", "_name_or_path")}
    earlier = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
    assert earlier != config_hash(tmp_path)
    assert config_hash(tmp_path, {"config_sha256": earlier}) == earlier
    known = ({"config_sha256": said} for said in (None, "a", config_hash(reference)))
    assert {config_hash(tmp_path, said) for said in known} == {config_hash(reference)}
    (tmp_path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    other = config_hash(tmp_path)
    assert other not in (earlier, config_hash(reference))
    assert config_hash(tmp_path, {"config_sha256": earlier}) == other


def test_a_config_json_that_is_as_it_was_is_the_same_whatever_transformers_understands(
    reference: Path, tmp_path: Path
) -> None:
    """A later version may derive values of it that an earlier one did not know of."""
    known = {"config_sha256": "of another transformers", "config_words_sha256": config_words_hash(reference)}
    assert config_hash(reference, known) == "of another transformers"
    config = json.loads((reference / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert config_hash(tmp_path, known) == config_hash(tmp_path) != "of another transformers"


def test_a_model_with_an_adapter_beside_it_is_refused(reference: Path, tmp_path: Path) -> None:
    model = shutil.copytree(reference, tmp_path / "model")
    check_model(str(model))
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds a model and an adapter \(adapter_config.json\)"):
        check_model(str(model))


def test_models_of_an_evaluation_with_an_adapter_beside_them_are_refused(
    minilm: Path, reference: Path, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store"))
    model = shutil.copytree(reference, tmp_path / "model")
    for directory in (minilm, model):
        (directory / "adapter_config.json").write_text("{}")
    uses: list[Callable[[], Any]] = [
        lambda: RewardJudge(str(minilm), store),
        lambda: _identify(str(minilm), store),
        lambda: Featuriser(str(minilm), store),
        lambda: SecondModel(str(model), store=store),
    ]
    for use in uses:
        with pytest.raises(UserError, match=r"holds a model and an adapter \(adapter_config.json\)"):
            use()


def test_modules_that_are_no_list_are_refused(minilm: Path) -> None:
    (minilm / "modules.json").write_text("{}")
    (minilm / "modules.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="is no list of modules"):
        settings_hash(minilm)


@pytest.mark.parametrize("folder", ["..", "/", "1_Pooling/../../other", "a\0b"])
def test_modules_outside_of_the_model_are_refused_and_not_read(minilm: Path, folder: str) -> None:
    (minilm / "modules.json").write_text(json.dumps([{"idx": 0, "path": "."}, {"idx": 1, "path": folder}]))
    with pytest.raises(
        UserError, match=r"modules.json' names a module outside of the model's directory, '[^\n]+'. Cor"
    ):
        settings_hash(minilm)


@pytest.mark.parametrize("name", ["bpe.codes", "source.spm", "qwen.tiktoken", "prophetnet.tokenizer", "vocab.bpe"])
def test_a_vocabulary_of_any_ending_decides(minilm: Path, name: str) -> None:
    before = settings_hash(minilm)
    hashes = []
    for content in ("a b", "a c"):
        (minilm / name).write_text(content)
        hashes.append(settings_hash(minilm))
    assert len({before, *hashes}) == 3


def test_a_tokenizer_with_more_ids_than_rows_is_refused_before_the_model_is_loaded(minilm: Path) -> None:
    check_tokenizer_fits(str(minilm))
    config = json.loads((minilm / "config.json").read_text())
    (minilm / "config.json").write_text(json.dumps({**config, "vocab_size": 30000}))
    with pytest.raises(UserError, match=r"has 30522 tokens, the model's embedding 30000 rows"):
        check_tokenizer_fits(str(minilm))
