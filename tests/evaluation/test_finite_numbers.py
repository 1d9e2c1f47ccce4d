"""An evaluation's numbers are finite, or it stops and names model and prompt."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from data.command.errors import UserError
from data.schema import Candidate, Group
from evaluation.answers.cache import Store
from evaluation.answers.decoding import parse_decoding
from evaluation.answers.generations import GenerationSet, generate
from evaluation.metrics import METRICS
from evaluation.metrics.base import PromptEvidence, SetEvidence
from evaluation.metrics.likelihood import SecondModel, second_model_logps
from evaluation.metrics.logps import candidate_logps, truth_logps
from evaluation.metrics.ranking import read_held_out
from evaluation.metrics.statistics import Estimate
from evaluation.on_demand import OnDemand
from negatives_gen.models.engine import Sample
from tests.support.damage import change_groups
from tests.support.tiny import make_negative_set
from trainer.scoring.scorer import Scorer

VALUES = [math.nan, math.inf, -math.inf]


def groups() -> list[Group]:
    negatives = [Candidate("an", [8, 0], "t", reference_logp=-2.0, similarity={"embedding": 0.5})]
    return [Group(name * 32, "p", "r", [5, 6], [7, 0], reference_logp=-1.0, negatives=negatives) for name in "ab"]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_of_a_prompt_that_is_not_finite_is_named(value: float) -> None:
    columns = METRICS.load("similarity").columns
    PromptEvidence(columns, {("m", "greedy"): {"similarity": [0.5, None]}})
    with pytest.raises(UserError) as caught:
        PromptEvidence(columns, {("m", "greedy"): {"similarity": [0.5, None, value]}})
    assert str(caught.value).startswith(
        f"similarity of prompt 2, model 'm', answers by greedy, is {value}, which is no"
    )
    with pytest.raises(UserError, match=f"similarity of value 0, model 'm', is {value}"):
        PromptEvidence(columns, {("m", ""): {"similarity": [value]}}, of_prompts=False)


def test_an_estimate_of_a_set_that_is_not_finite_is_named_a_missing_error_is_not() -> None:
    SetEvidence({("test", "m", "greedy"): {"mauve": Estimate(0.5, math.nan, 3)}})
    with pytest.raises(UserError, match="mauve, model 'm', answers by greedy, is nan"):
        SetEvidence({("test", "m", "greedy"): {"mauve": Estimate(math.nan, math.nan, 3)}})


def test_a_checkpoint_whose_weights_are_not_finite_is_refused_and_nothing_kept(reference: Path, tmp_path: Path) -> None:
    """The ranking accuracy would be 0: nan is less likely than nothing."""
    model = Path(shutil.copytree(reference, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    store = Store(str(tmp_path / "store"))

    def load() -> Scorer:
        return Scorer.load(str(model))

    with pytest.raises(UserError, match=f"continuation 0 of group {'a' * 32} is nan in float32, which is no finite"):
        candidate_logps(store, {"weights_sha256": "w"}, groups(), "float32", load)
    with pytest.raises(UserError, match="Look at the model's weights"):
        truth_logps(store, {"weights_sha256": "w"}, groups(), load)
    assert not list((tmp_path / "store").rglob("*.parquet"))


class EngineFaultStub:
    """The second answer has no log-probability."""

    def __init__(self, value: float):
        self.value = value

    def decode(self, prompts: Any, **_: Any) -> list[Sample]:
        return [Sample([7], "a", "length", logp, None) for logp in (-1.0, self.value)]


@pytest.mark.parametrize("value", VALUES)
def test_an_answer_whose_log_probability_is_not_finite_is_refused_and_not_kept(value: float, tmp_path: Path) -> None:
    store, identity = Store(str(tmp_path)), {"weights_sha256": "w", "tokenizer_sha256": "t"}
    with pytest.raises(UserError, match=f"the answer to example {'b' * 32} is {value}, which is no finite number"):
        generate(
            *(store, identity, {}, parse_decoding("greedy"), groups(), 4, 32, 0),
            lambda: EngineFaultStub(value),  # type: ignore[arg-type, return-value]
        )
    assert not list(tmp_path.rglob("*.parquet"))


def test_held_out_groups_with_a_number_that_is_not_finite_are_refused(reference: Path, tmp_path: Path) -> None:
    def spoil(found: list[Group]) -> None:
        found[2].negatives[1].similarity["embedding"] = math.nan

    make_negative_set(tmp_path / "set", reference, num_groups=8, num_negatives=2, split="all")
    change_groups(tmp_path / "set", spoil)
    with pytest.raises(UserError, match=r"cannot be used: similarity 'embedding' of a negative of group \w{32} is nan"):
        read_held_out(str(tmp_path / "set"), "all", [])


class ScorerFaultStub:
    """The second answer has this log-probability."""

    def __init__(self, value: float):
        self.value = value

    def score(self, pairs: Any) -> list[list[float]]:
        return [[value] for _, value in zip(pairs, (-1.0, self.value), strict=True)]


def answers_for(found: list[Group], second: SecondModel) -> GenerationSet:
    key = {"model": {"tokenizer_sha256": second.identity["tokenizer_sha256"]}}
    samples = [Sample([7], "a", "length", -1.0, None) for _ in found]
    return GenerationSet(key, "k", [group.id for group in found], samples)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_second_model_that_gives_no_number_ends_the_evaluation(value: float, reference: Path, tmp_path: Path) -> None:
    found, second = groups(), SecondModel(str(reference))
    second.scorer = OnDemand(lambda: ScorerFaultStub(value))
    with pytest.raises(UserError, match=f"the answer to example {'b' * 32} the log-probability {value}, which is no"):
        second_model_logps(Store(str(tmp_path)), answers_for(found, second), found, second)
    assert not list(tmp_path.rglob("*.parquet"))


def test_an_answer_that_is_impossible_to_the_second_model_is_counted(reference: Path, tmp_path: Path) -> None:
    second = SecondModel(str(reference))
    second.scorer = OnDemand(lambda: ScorerFaultStub(-math.inf))
    found = second_model_logps(Store(str(tmp_path)), answers_for(groups(), second), groups(), second)
    assert found.problems == ["", "impossible to the second model"]
    assert found.logps == [-1.0, None]
