"""The prompts that checkpoints are compared on: the same for all, whatever their contexts and tokenizers."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from data.command.errors import UserError
from data.models import context_length, load_tokenizer
from data.sources import facts
from data.sources.examples import Example
from evaluation.answers.cache import Store
from evaluation.answers.checkpoints import Checkpoint, load_checkpoints


def with_context(model: Path, directory: Path, context: int) -> str:
    """A copy of a model that takes shorter sequences."""
    shutil.copytree(model, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context}))
    assert context_length(str(directory)) == context
    return str(directory)


def with_bos(model: Path, directory: Path) -> str:
    """A copy whose tokenizer, another one by its hash, puts a BOS before each text."""
    shutil.copytree(model, directory)
    tokenizer = load_tokenizer(str(directory))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(directory)
    return str(directory)


def long_texts(number: int) -> list[Example]:
    """Texts of the embedded world, longer than any tiny model's context."""
    sentences = [f"{row['prompt']}{row['completion']} " for row in facts.examples()]
    texts = ["".join(sentences[10 * i : 10 * i + 10]) for i in range(number)]
    return [Example(str(i), text, "", "test") for i, text in enumerate(texts)]


def load(tmp_path: Path, models: dict[str, str], examples: list[Example], task: str) -> list[Checkpoint]:
    return load_checkpoints(models, examples, task, "texts", Store(str(tmp_path / "store")))


def test_a_text_is_cut_once_for_contexts_and_tokenizers_that_differ(reference: Path, tmp_path: Path) -> None:
    models = {
        "long": str(reference),
        "short": with_context(reference, tmp_path / "short", 60),
        "bos": with_bos(reference, tmp_path / "bos"),
    }
    long, short, bos = load(tmp_path, models, long_texts(4), "continuation")
    assert len({c.identity["tokenizer_sha256"] for c in (long, short, bos)}) == 2
    assert len(long.groups) == 4
    for a, b, c in zip(long.groups, short.groups, bos.groups, strict=True):
        assert (a.id, a.prompt, a.response) == (b.id, b.prompt, b.response) == (c.id, c.prompt, c.response)
        assert (a.prompt_ids, a.response_ids) == (b.prompt_ids, b.response_ids)
        assert c.prompt_ids == [load_tokenizer(models["bos"]).eos_token_id, *a.prompt_ids]
        assert len(a.prompt_ids) == 59 * 15 // 100  # of the shortest context, less EOS
    assert long.context == short.context == 60 < bos.context


def test_what_all_models_are_asked_is_said_once(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    short = with_context(reference, tmp_path / "short", 60)
    examples = [Example(str(i), "Who? " * (1 + 20 * i), "I", "test") for i in range(2)]
    load(tmp_path, {"a": str(reference), "b": str(reference)}, examples[:1], "prompt-completion")
    assert caplog.messages == ["texts: 1 prompt, 0 rejected"]
    caplog.clear()
    models = {"a": str(reference), "b": str(reference), "short": short}
    load_checkpoints(models, examples, "prompt-completion", "texts", Store(str(tmp_path / "store")), 100)
    assert caplog.messages[:2] == [
        "--max_length 100 is beyond the context: short takes 60, prompt and response together",
        "a, b: 2 prompts, 0 rejected",
    ]
    assert caplog.messages[2].startswith("short: 1 prompt, 1 rejected (1 prompt too long:")
    assert caplog.messages[3:] == ["compared on the 1 prompt that all of them take"]


def test_prompts_that_a_model_has_no_room_for_are_left_out_for_all(reference: Path, tmp_path: Path) -> None:
    rows = [Example(str(i), row["prompt"], row["completion"], "test") for i, row in enumerate(facts.examples()[:20])]
    lengths = sorted({len(g.prompt_ids) + len(g.response_ids) for g in load(
        tmp_path, {"long": str(reference)}, rows, "prompt-completion")[0].groups})  # fmt: skip
    models = {"long": str(reference), "short": with_context(reference, tmp_path / "short", lengths[-1] - 1)}
    long, short = load(tmp_path, models, rows, "prompt-completion")
    assert long.groups == short.groups
    assert 0 < len(long.groups) < 20
    assert long.context > short.context == lengths[-1] - 1
    with pytest.raises(UserError, match="no usable row"):
        load(tmp_path, {"tiny": with_context(reference, tmp_path / "tiny", 3)}, rows, "prompt-completion")
