"""data/whole_weights.py: a model that its checkpoint does not hold whole is refused wherever one is loaded."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from data.command.errors import UserError
from data.whole_weights import load_whole
from negatives_gen.models.reward_model import RewardModel
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
