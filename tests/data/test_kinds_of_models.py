"""Models whose config does not say a context length, and encoder-decoders, in every command that takes a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.command.options import make_config
from data.models import check_causal, context_length, warn_of_cap
from data.shards import NegativeSet
from evaluation.answers.cache import Store
from evaluation.answers.checkpoints import load_checkpoints
from evaluation.metrics.likelihood import SecondModel
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from tests.support.read_examples import load_examples
from tests.support.stubs import ScorerStub, signals_stub
from tests.support.without_ray import without_ray


def with_config(model: Path, directory: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a model with another config.json."""
    shutil.copytree(model, directory)
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def endless(reference: Path, tmp_path: Path) -> Path:
    """A model that does not say its context, as of state spaces or relative positions."""
    return with_config(reference, tmp_path / "endless", lambda config: config.pop("max_position_embeddings"))


@pytest.fixture
def encoder_decoder(reference: Path, tmp_path: Path) -> Path:
    said = {"is_encoder_decoder": True, "model_type": "t5"}
    return with_config(reference, tmp_path / "t5", lambda config: config.update(said))


def test_the_shorter_of_context_and_longest_counts(reference: Path, endless: Path) -> None:
    assert [context_length(str(reference), n) for n in (None, 7, 10**6)] == [128, 7, 128]
    assert context_length(str(endless), 7) == 7
    with pytest.raises(UserError, match=r"does not say its context length .* Say it with --max_length"):
        context_length(str(endless))


def test_a_longer_max_length_than_models_take_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_cap(None, {"a": 128})
    warn_of_cap(128, {"a": 128})
    assert not caplog.messages
    warn_of_cap(4096, {"a": 128, "b": 8192, "c": 1024})
    assert caplog.messages == [
        "--max_length 4,096 is beyond the context: a takes 128, c takes 1,024, prompt and response together"
    ]


def test_stage_1_takes_a_model_that_does_not_say_its_context_with_max_length(endless: Path, tmp_path: Path) -> None:
    def make(**more: Any) -> Any:
        config = make_config(
            GenerateConfig, model=str(endless), out=str(tmp_path / "set"), dataset="facts", limit=6, strategies="tn=1",
            embedder="reference", **more,
        )  # fmt: skip
        with without_ray():
            return generate(config, Components(scorer=ScorerStub, signals=signals_stub))

    with pytest.raises(UserError, match="--max_length"):
        make()
    assert make(max_length=90).job["data"]["context"] == 90
    assert len(NegativeSet(str(tmp_path / "set"))) == 6


@pytest.mark.seconds
def test_the_trainer_takes_ground_truths_for_a_model_without_a_context_with_max_length(
    endless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.run import main

    words = ["--objective", "mle", "--model", str(endless), "--dataset", "facts", "--output_dir", str(tmp_path / "out")]
    words += ["--max_steps", "1", "--save_strategy", "no", "--use_cpu", "--disable_tqdm", "true"]
    assert main(words) == 2
    assert "Say it with --max_length." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--max_length", "90"]) == 0
    assert json.loads((tmp_path / "out" / "trainer_job.json").read_text())["max_length"] == 90
    assert main([*words, "--max_length", "80", "--resume_from_checkpoint", "true"]) == 2
    assert "its max_length is 90, this job's is 80" in capsys.readouterr().err


def test_the_evaluation_takes_a_model_without_a_context_with_max_length(
    endless: Path, reference: Path, tmp_path: Path
) -> None:
    models = {"endless": str(endless), "reference": str(reference)}
    given = models, load_examples("facts", "prompt-completion", "test", 4), "prompt-completion", "facts"
    store = Store(str(tmp_path / "store"))
    with pytest.raises(UserError, match="--max_length"):
        load_checkpoints(*given, store)
    assert [checkpoint.context for checkpoint in load_checkpoints(*given, store, 200)] == [200, 128]
    assert SecondModel(str(endless)).context > 10**9


def test_an_encoder_decoder_is_named_as_such(encoder_decoder: Path, reference: Path, tmp_path: Path) -> None:
    said = rf"model '{encoder_decoder}' is an encoder-decoder \(t5\): .* Give a decoder-only language model."
    assert check_causal(str(reference)) == reference
    with pytest.raises(UserError, match=said):
        check_causal(str(encoder_decoder))
    with pytest.raises(UserError, match=said):
        load_checkpoints({"t5": str(encoder_decoder)}, [], "prompt-completion", "facts", Store(str(tmp_path / "s")))
    with pytest.raises(UserError, match=said):
        SecondModel(str(encoder_decoder))
    config = make_config(GenerateConfig, model=str(encoder_decoder), out=str(tmp_path / "set"), dataset="facts")
    with pytest.raises(UserError, match=said):
        generate(config)
    assert not (tmp_path / "set").exists()


def test_the_trainer_names_an_encoder_decoder(
    encoder_decoder: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.support.training import cli
    from trainer.run import main

    assert main(cli(encoder_decoder, negative_set, tmp_path / "out")) == 2
    assert "is an encoder-decoder (t5)" in capsys.readouterr().err


@pytest.mark.parametrize("layers", [0, -1, "2", 2.0, True, 10**6, 10**30, None])
def test_a_number_of_layers_that_no_model_has_is_one_line_before_any_memory(
    layers: Any, reference: Path, tmp_path: Path
) -> None:
    model = with_config(reference, tmp_path / "m", lambda config: config.update(num_hidden_layers=layers))
    if layers is None:
        check_causal(str(model))
        return
    with pytest.raises(UserError, match=r"says num_hidden_layers .*; it must be a whole number from 1 to 10000\."):
        check_causal(str(model))


@pytest.mark.parametrize("size", [0, -1, "641"])
def test_a_vocabulary_that_no_model_has_is_one_line(size: Any, reference: Path, tmp_path: Path) -> None:
    model = with_config(reference, tmp_path / "m", lambda config: config.update(vocab_size=size))
    with pytest.raises(UserError, match=r"says vocab_size .*; it must be a whole number from 1 to \d+\. Correct"):
        check_causal(str(model), needs_weights=False)
