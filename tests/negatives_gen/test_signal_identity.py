"""What a manifest says of a signal's model is all that decides its values, by one rule for all of them."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.model_settings import text_model_identity
from data.models import load_tokenizer
from negatives_gen.signals import SIGNALS, Reference
from negatives_gen.verbs.extend import _refuse_other_signal
from tests.support import odd_tokenizers as odd

OPTIONS = {"embedding": "embedder", "reward": "reward_model", "bertscore": "bertscore_model"}


def identity(signal: str, model: Path | str, reference: str = "") -> dict[str, Any]:
    entry: Any = SIGNALS.load(signal)
    return entry.identity(entry.Options(**{OPTIONS[signal]: str(model)}), Reference(reference))


def give_one_label(model: Path) -> None:
    """A reward model is refused that has others."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}))


@pytest.mark.parametrize("signal", OPTIONS)
@pytest.mark.seconds
def test_every_signal_with_a_model_names_weights_and_settings(minilm: Path, signal: str) -> None:
    give_one_label(minilm)
    expected = text_model_identity(str(minilm))
    assert {name: identity(signal, minilm)[name] for name in expected} == expected


def test_the_reference_as_embedder_is_named_by_the_same_rule(reference: Path) -> None:
    assert identity("embedding", "reference", str(reference)) == text_model_identity(str(reference))


@pytest.mark.seconds
@pytest.mark.parametrize("signal", OPTIONS)
@pytest.mark.parametrize("file", ["1_Pooling/config.json", "modules.json", "tokenizer.json"])
def test_values_of_a_changed_model_are_not_added_to_a_set(minilm: Path, signal: str, file: str) -> None:
    give_one_label(minilm)
    before = identity(signal, minilm)
    _refuse_other_signal(signal, before, identity(signal, minilm))
    (minilm / file).write_text((minilm / file).read_text().rstrip() + " ")
    with pytest.raises(UserError, match=f"the set's signal '{signal}' was computed with settings_sha256"):
        _refuse_other_signal(signal, before, identity(signal, minilm))


def test_a_set_that_does_not_name_settings_is_added_to_and_the_log_says_so(
    minilm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = identity("embedding", minilm)
    with caplog.at_level(logging.WARNING):
        _refuse_other_signal("embedding", {"weights_sha256": found["weights_sha256"]}, found)
    assert "does not say with which settings its signal 'embedding' was computed" in caplog.text
    with pytest.raises(UserError, match="computed with weights_sha256 0"):
        _refuse_other_signal("embedding", {"weights_sha256": "0"}, found)


@pytest.mark.parametrize("signal", OPTIONS)
def test_a_model_with_fewer_rows_than_ids_is_refused_before_any_work(minilm: Path, signal: str) -> None:
    config = json.loads((minilm / "config.json").read_text())
    (minilm / "config.json").write_text(json.dumps({**config, "vocab_size": 30000}))
    with pytest.raises(UserError, match="has 30522 tokens, the model's embedding 30000 rows"):
        identity(signal, minilm)


@pytest.mark.parametrize("signal", OPTIONS)
def test_a_model_with_an_adapter_beside_it_is_refused_before_any_work(minilm: Path, signal: str) -> None:
    """No hash would be of the weights of such an adapter."""
    (minilm / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"'{minilm}' holds a model and an adapter \(adapter_config.json\)"):
        identity(signal, minilm)


def test_a_job_with_such_a_reference_is_refused_before_its_directory_is_claimed(
    reference: Path, tmp_path: Path
) -> None:
    from data.command.options import make_config
    from negatives_gen.config import GenerateConfig
    from negatives_gen.job.job import generate

    tokenizer = load_tokenizer(str(reference))
    rows = len(tokenizer)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(UserError):
        odd.save_model(tmp_path / "model", tokenizer, rows=rows)
    config = make_config(
        GenerateConfig, model=str(tmp_path / "model"), dataset="facts", out=str(tmp_path / "out"), strategies="tn=1"
    )
    with pytest.raises(UserError, match=f"has {rows + 1} tokens, the model's embedding {rows} rows"):
        generate(config)
    assert not (tmp_path / "out").exists()
