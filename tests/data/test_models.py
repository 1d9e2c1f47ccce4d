"""data/models.py and data/blank.py: what a model directory is, hashes, and a model without a hub."""

import fnmatch
import json
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import architectures, blank
from data import models as identity
from data.blank import BlankConfig, write_blank_model
from data.models import (
    architecture,
    chat_template_hash,
    check_model,
    context_length,
    context_option,
    load_tokenizer,
    read_header,
    read_object,
    tokenizer_hash,
    unreadable,
    vocabulary_size,
    weights_hash,
)
from tests.support.written import refusal


def test_a_hub_model_comes_with_its_chat_template_and_its_code_but_no_pickles(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, here = tmp_path / "hub", tmp_path / "here"
    tokenizer = AutoTokenizer.from_pretrained(reference)
    tokenizer.chat_template = "{{ messages[0].content }}"
    shutil.copytree(reference, hub)
    tokenizer.save_pretrained(hub)
    for name in ("modeling.py", "pytorch_model.bin"):
        (hub / name).write_text("")

    def download_stub(_: str, *, allow_patterns: list[str]) -> str:
        keep = [name for pattern in allow_patterns for name in fnmatch.filter(os.listdir(hub), pattern)]
        shutil.copytree(hub, here, ignore=lambda _, names: set(names) - set(keep))
        return str(here)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download_stub)
    directory = identity.model_directory("someone/model")
    assert sorted(p.name for p in hub.iterdir() if not (directory / p.name).exists()) == ["pytorch_model.bin"]
    found, plain = load_tokenizer(str(directory)), AutoTokenizer.from_pretrained(reference)
    assert found.chat_template == tokenizer.chat_template
    assert tokenizer_hash(found) == tokenizer_hash(plain)
    assert (chat_template_hash(plain), len(chat_template_hash(found) or "")) == (None, 64)


def test_the_weights_hash_ignores_sharding_and_sees_one_changed_weight(reference: Path, tmp_path: Path):
    loaded = AutoModelForCausalLM.from_pretrained(reference)
    loaded.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 1
    assert weights_hash(str(tmp_path / "sharded")) == weights_hash(str(reference))
    loaded.model.norm.weight.data[0] += 1e-6
    loaded.save_pretrained(tmp_path / "changed")
    assert weights_hash(str(tmp_path / "changed")) != weights_hash(str(reference))


def test_only_the_weights_that_transformers_loads_are_hashed(reference: Path, tmp_path: Path):
    loaded, expected = AutoModelForCausalLM.from_pretrained(reference), weights_hash(str(reference))
    loaded.save_pretrained(tmp_path, max_shard_size="100KB")
    for name in ("model-stale.safetensors", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(b"not ours")
    assert weights_hash(str(tmp_path)) == expected  # the index names the files

    whole, index = (reference / "model.safetensors").read_bytes(), tmp_path / "model.safetensors.index.json"
    (tmp_path / "model.safetensors").write_bytes(whole)
    for shard in tmp_path.glob("model-*.safetensors"):
        shard.unlink()
    assert AutoModelForCausalLM.from_pretrained(tmp_path)
    assert weights_hash(str(tmp_path)) == expected  # the index is an earlier save's

    (tmp_path / "model.safetensors").unlink()
    assert "names model-00001-of-" in refusal(lambda: weights_hash(str(tmp_path)))
    for content in ("{", "{}", "[]"):
        index.write_text(content)
        assert str(index) in refusal(lambda: weights_hash(str(tmp_path)))
    index.unlink()
    (tmp_path / "model_custom.safetensors").write_bytes(whole)
    assert weights_hash(str(tmp_path)) == expected  # the adapter is passed over
    (tmp_path / "model_custom.safetensors").unlink()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole)
    assert weights_hash(str(tmp_path)) == expected


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"", b"\x02\0\0\0\0\0\0\0\xff\xff"]
)
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "model.safetensors' is no safetensors file" in refusal(lambda: weights_hash(str(tmp_path)))


def test_a_weights_file_that_is_cut_short_is_refused(reference: Path, tmp_path: Path):
    content = (reference / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-4])
    assert "is cut short: tensor '" in refusal(lambda: weights_hash(str(tmp_path)))


def test_the_tokenizer_hash_survives_calls_and_saving_and_sees_a_new_token(reference: Path, tmp_path: Path):
    tokenizer = load_tokenizer(str(reference))
    fresh = tokenizer_hash(tokenizer)
    tokenizer(["a", "a long text"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(tokenizer) == fresh
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path)) == fresh
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_hash(tokenizer) != fresh


def test_check_model_says_which_part_is_missing(tmp_path: Path):
    path = str(tmp_path)
    assert f"model '{path}' has no config.json" in refusal(lambda: check_model(path))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert f"model '{path}' is a LoRA adapter. Merge it into its base first" in refusal(lambda: check_model(path))
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "config.json").write_text('{"n_positions": 7}')
    assert f"model '{path}' has no tokenizer" in refusal(lambda: check_model(path))
    (tmp_path / "tokenizer.json").write_text("{")
    assert f"model '{path}' has no *.safetensors weights" in refusal(lambda: check_model(path))
    assert check_model(path, needs_weights=False) == tmp_path
    assert f"the tokenizer of '{path}' cannot be read" in refusal(lambda: load_tokenizer(path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert check_model(path) == tmp_path
    assert context_length(path) == 7


def test_a_tokenizer_without_eos_is_refused(reference: Path, tmp_path: Path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((reference / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert "has no EOS token" in refusal(lambda: load_tokenizer(str(tmp_path)))


def test_a_config_without_a_context_length_is_refused(tmp_path: Path):
    for content in ("{}", '{"text_config": null}', '{"max_position_embeddings": "long"}'):
        (tmp_path / "config.json").write_text(content)
        assert "does not say its context length" in refusal(lambda: context_length(str(tmp_path)))


@pytest.mark.parametrize(
    ("names", "found", "continues"),
    [
        (["GPT2LMHeadModel"], ["GPT2LMHeadModel"], True),
        ("GPT2LMHeadModel", ["GPT2LMHeadModel"], True),
        (["BertModel", 5], ["BertModel", "5"], False),
        (5, ["5"], False),
        (None, [], False),
        ({}, [], False),
    ],
)
def test_classes_of_a_config_that_says_anything(names: Any, found: list[str], continues: bool) -> None:
    assert architectures.classes({"architectures": names}) == found
    assert architectures.continues_texts({"architectures": names}) == continues


@pytest.mark.parametrize("length", [True, "8", None, 0, float("inf"), [8]])
def test_a_context_that_is_no_number_is_none(length: Any) -> None:
    assert architectures.longest_sequence({"max_position_embeddings": length, "n_positions": 8}) == 8
    assert architectures.longest_sequence({"max_position_embeddings": length}) is None


def test_a_file_that_is_not_there_is_no_matter_of_permissions(tmp_path: Path) -> None:
    for read in (read_object, read_header):
        assert refusal(lambda read=read: read(tmp_path / "a")).endswith(
            "(No such file or directory). Copy the file again."
        )
    (tmp_path / "config.json").mkdir()
    assert refusal(lambda: read_object(tmp_path / "config.json")).endswith("(Is a directory). Copy the file again.")
    said = str(unreadable(tmp_path / "a", PermissionError(13, "Permission denied")))
    assert said == f"'{tmp_path}/a' cannot be read (Permission denied). Check its permissions."


def test_the_context_length_may_stand_in_the_text_config(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 5}}')
    assert context_length(str(tmp_path)) == 5
    (tmp_path / "config.json").write_text('{"text_config": null, "n_positions": 6}')
    assert context_length(str(tmp_path)) == 6


def test_vllm_is_told_a_context_that_config_json_does_not_say(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    assert context_option(str(tmp_path), 8192) == {"max_model_len": 8192}
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 5}}')
    assert context_option(str(tmp_path), 5) == {}


@pytest.mark.parametrize("name", ["model.embed_tokens", "language_model.model.embed_tokens", "transformer.wte"])
def test_rows_that_config_json_does_not_say_are_those_of_the_embedding(tmp_path: Path, name: str):
    (tmp_path / "config.json").write_text('{"text_config": {"hidden_size": 4}}')
    assert vocabulary_size(str(tmp_path)) is None  # no weights either
    tensors = {f"{name}.weight": torch.zeros(7, 4), "vision.position_embedding.weight": torch.zeros(9, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert vocabulary_size(str(tmp_path)) == 7
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 8}}')
    assert vocabulary_size(str(tmp_path)) == 8


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gpt2", "n_embd": 1600, "n_layer": 48}, ("gpt2", 1600, 48)),
        ({"model_type": "llama", "hidden_size": 3200, "num_hidden_layers": 26}, ("llama", 3200, 26)),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 8}},
            ("gemma3_text", 8, None),
        ),
    ],
)
def test_the_architecture_is_what_the_config_says(tmp_path: Path, config: dict, expected: tuple):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert architecture(str(tmp_path)) == dict(zip(("model_type", "hidden_size", "layers"), expected, strict=True))


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_broken_config_is_refused_by_path(tmp_path: Path, content: str):
    path = tmp_path / "config.json"
    path.write_text(content, encoding="latin-1")
    message = refusal(lambda: context_length(str(tmp_path)))
    assert message.startswith(f"'{path}'")
    assert message.endswith("Copy the file again.")


def test_a_model_that_is_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    assert "model './absent' does not exist" in refusal(lambda: check_model("./absent"))
    assert "hub model that can be reached (ConnectionError)" in refusal(lambda: identity.model_directory("some/one"))


# The blank model


def test_a_blank_model_has_a_lossless_tokenizer_and_a_config_that_agree(tmp_path: Path):
    write_blank_model(BlankConfig(out=str(tmp_path), vocab_size=400, max_length=99))
    tokenizer = load_tokenizer(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer) == 400
    assert context_length(str(tmp_path)) == tokenizer.model_max_length == 99
    assert config["eos_token_id"] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(blank.EOS)
    text = " Füße\n\t日本 don't ."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert not list(tmp_path.glob("*.safetensors"))


def test_heads_that_do_not_divide_the_width_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["--out", str(tmp_path / "m"), "--hidden_size", "100", "--num_heads", "3"]
    assert blank.main(argv) == 2
    assert capsys.readouterr().err == "error: hidden_size 100 is not divisible by num_heads 3.\n"
    assert not (tmp_path / "m").exists()


def test_the_tokenizer_is_trained_on_what_is_usable_and_on_what_messages_say(tmp_path: Path):
    data = tmp_path / "chats.jsonl"
    rows: list[dict[str, Any]] = []
    for number in range(6):
        turns = [f"why zebra zebra {number}?", "so zebra zebra."]
        chat = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), turns, strict=True)]
        rows += [{"messages": chat}, {"messages": None}, {"messages": [{"role": "user", "content": "\ud800"}]}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_blank_model(BlankConfig(dataset=str(data), task="conversational", out=str(tmp_path / "m"), vocab_size=300))
    assert "zebra" in "".join(load_tokenizer(str(tmp_path / "m")).get_vocab())
