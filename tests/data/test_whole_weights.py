"""data/whole_weights.py: a model that its checkpoint does not hold whole is refused wherever one is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import ModelConfig

from data.command.errors import UserError
from data.command.log import ScrubbingFormatter
from data.whole_weights import load_whole
from evaluation.metrics.features import Featuriser
from negatives_gen.models.embedder import Embedder
from negatives_gen.models.reward_model import RewardModel
from negatives_gen.signals import SIGNALS, Reference
from tests.support.tiny import copy_minilm
from trainer.policy import Policy
from trainer.scoring.scorer import Scorer

pytestmark = pytest.mark.seconds


def with_config(reference: Path, directory: Path, **values: object) -> Path:
    shutil.copytree(reference, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **values}))
    return directory


@pytest.mark.parametrize("what", ["head", "layer"])
@pytest.mark.parametrize("room", ["policy", "scorer"])
def test_what_a_checkpoint_lacks_is_named_and_not_drawn_at_random(
    room: str, what: str, reference: Path, tmp_path: Path
) -> None:
    layers = json.loads((reference / "config.json").read_text())["num_hidden_layers"]
    change, said = {
        "head": ({"tie_word_embeddings": False}, r"lack 1 of the tensors .* such as lm_head\.weight"),
        "layer": ({"num_hidden_layers": layers + 1}, rf"lack \d+ of the tensors .* such as model\.layers\.{layers}\."),
    }[what]
    model = with_config(reference, tmp_path / "m", **change)
    policy = Policy(model, ModelConfig(), from_scratch=False, dropout=False)
    with pytest.raises(UserError, match=rf"the weights of '{model}' {said}"):
        policy.load() if room == "policy" else Scorer.load(str(model))


def test_weights_of_another_shape_are_one_line_and_no_table(
    reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    size = json.loads((reference / "config.json").read_text())["vocab_size"]
    model = with_config(reference, tmp_path / "m", vocab_size=size + 128)
    with pytest.raises(
        UserError, match=rf"embed_tokens\.weight is of shape \[{size}, \d+\], and should be of \[{size + 128},"
    ):
        Scorer.load(str(model))
    model = with_config(reference, tmp_path / "n", num_hidden_layers=9)
    with pytest.raises(UserError, match="lack"):
        Scorer.load(str(model))
    printed = capfd.readouterr()
    assert "REPORT" not in printed.out + printed.err


def test_a_language_model_is_no_reward_model(reference: Path, tmp_path: Path) -> None:
    model = with_config(reference, tmp_path / "m", num_labels=1)
    with pytest.raises(UserError, match=r"lack 1 of the tensors .* such as score\.weight"):
        RewardModel(str(model))


def test_what_a_configuration_leaves_out_is_said(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_whole(AutoModelForCausalLM, reference, "whole")
    assert caplog.text == ""
    layers = json.loads((reference / "config.json").read_text())["num_hidden_layers"]
    load_whole(AutoModelForCausalLM, with_config(reference, tmp_path / "m", num_hidden_layers=layers - 1), "m")
    assert f"of its tensors are not used, such as model.layers.{layers - 1}." in caplog.text


def test_a_tied_head_that_is_saved_once_lacks_nothing(reference: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(reference, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(reference).save_pretrained(tmp_path)
    assert Scorer.load(str(tmp_path)).model.config.tie_word_embeddings


def without(source: Path, directory: Path, part: str) -> Path:
    """A copy of a model without the tensors whose names hold a part."""
    shutil.copytree(source, directory)
    path = directory / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if part not in name}, path, {"format": "pt"})
    return directory


def vectors(model: Path) -> Any:
    return Embedder(str(model), "").embed(["a cat"])


def similarity(model: Path) -> Any:
    return f1(model, "a cat", "a dog")


def f1(model: Path, text: str, truth: str) -> Any:
    bertscore: Any = SIGNALS.load("bertscore")
    return bertscore(bertscore.Options(bertscore_model=str(model)), Reference("")).scorer.score([text], [truth])[2]


@pytest.mark.parametrize("use", [vectors, similarity])
def test_an_encoder_may_lack_its_pooler_alone(use: Callable[[Path], Any], tmp_path: Path) -> None:
    minilm = copy_minilm(tmp_path / "minilm")
    assert use(without(minilm, tmp_path / "a", "pooler.")) == pytest.approx(use(minilm), abs=1e-6)
    with pytest.raises(UserError, match=r"lack 2 of the tensors .* such as encoder\.layer\.5\.output\.dense\.bias"):
        use(without(minilm, tmp_path / "b", "layer.5.output.dense"))
    assert "from_pretrained" in vars(PreTrainedModel)  # put back as it was
    assert vars(PreTrainedModel)["from_pretrained"].__func__.__module__ == "transformers.modeling_utils"


@pytest.mark.parametrize("use", [vectors, similarity])
def test_what_an_encoder_does_not_use_is_one_line_that_steers_no_terminal(
    use: Callable[[Path], Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """transformers writes a table to the terminal by itself, with each name as it is."""
    model = copy_minilm(tmp_path / "minilm")
    tensors = {**load_file(model / "model.safetensors"), "\x1b]0;owned\x07": torch.zeros(1)}
    (model / "model.safetensors").unlink()
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    capfd.readouterr()
    use(model)
    printed = capfd.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "REPORT" not in printed.out + printed.err
    (said,) = [record for record in caplog.records if record.name == "data.whole_weights"]
    line = ScrubbingFormatter().format(said)
    assert "1 of its tensors are not used, such as" in line
    assert line.isprintable()


@pytest.mark.parametrize("use", [vectors, similarity])
def test_an_encoder_of_another_shape_is_one_line_and_no_table(
    use: Callable[[Path], Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = copy_minilm(tmp_path / "minilm")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))
    with pytest.raises(
        UserError, match=r"encoder\.layer\.0\.intermediate\.dense\.bias is of shape \[1536\], and should"
    ):
        use(model)
    printed = capfd.readouterr()
    assert "REPORT" not in printed.out + printed.err


def test_the_reference_as_embedder_has_no_head_to_be_told_of(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    AutoModelForCausalLM.from_pretrained(reference, tie_word_embeddings=False).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(reference).save_pretrained(tmp_path)
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
    caplog.clear()
    Embedder("reference", str(tmp_path))
    assert "not used" not in caplog.text


def test_a_featuriser_is_whole(reference: Path, tmp_path: Path) -> None:
    """The head that it does not use is none of the tensors that are said to be left over."""
    model = AutoModelForCausalLM.from_pretrained(reference, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(reference).save_pretrained(tmp_path / "untied")
    expected = AutoModel.from_pretrained(tmp_path / "untied")
    found = Featuriser(str(tmp_path / "untied"))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(found._language_model()(ids).last_hidden_state, expected(ids).last_hidden_state)
    part = "model.layers.0.mlp.up_proj"
    with pytest.raises(UserError, match=rf"lack 1 of the tensors .* such as {part}\.weight"):
        Featuriser(str(without(reference, tmp_path / "m", part))).features(["a"])


def test_an_encoder_that_does_not_say_its_longest_text_has_no_limit(reference: Path, tmp_path: Path) -> None:
    """XLNet's positions are relative."""
    tokenizer = AutoTokenizer.from_pretrained(reference)
    tokenizer.model_max_length = 10**30
    config = AutoConfig.for_model("xlnet", d_model=64, d_inner=64, n_head=2, n_layer=2, vocab_size=len(tokenizer))
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert 0 < float(similarity(tmp_path)) < 1
    long = " and so on" * 400
    assert float(f1(tmp_path, long, long)) == pytest.approx(1.0, abs=1e-4)
