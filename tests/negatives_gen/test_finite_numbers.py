"""Stage 1 writes no number that is not finite: it stops where one arises, with the group's id; `verify` finds one."""

import dataclasses
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from data.command.errors import UserError
from data.command.options import make_config
from data.finite import require_finite
from data.schema import Group, groups_to_table
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from negatives_gen.models.engine import Request, Sample
from negatives_gen.signals import Reference, Signal
from negatives_gen.verbs.checks import number_problems
from tests.support.stubs import EngineStub, ScorerStub, SignalStub, signals_stub
from tests.support.without_ray import without_ray
from tests.support.written import SIGNALS, group

VALUES = [math.nan, math.inf, -math.inf]
# A set keeps float32: the largest one, what is rounded to infinity, and what does not reach it.
LARGEST = float(np.finfo(np.float32).max)
TOO_LARGE = [1e39, -1e39, math.nextafter(LARGEST, math.inf)]


class EngineFaultStub(EngineStub):
    """An engine whose log-probabilities are no numbers."""

    value = math.nan

    def draw(self, request: Request) -> list[Sample]:
        return [dataclasses.replace(sample, logp=self.value) for sample in super().draw(request)]


class ScorerFaultStub(ScorerStub):
    """The last continuation of the last group has no log-probability."""

    value = math.nan

    def score(self, groups: Sequence[Any]) -> list[list[float]]:
        scores = super().score(groups)
        scores[-1][-1] = self.value
        return scores


class SignalFaultStub(SignalStub):
    """The first candidate has no similarity."""

    value = math.nan

    def add(self, groups: Sequence[Group]) -> None:
        super().add(groups)
        groups[0].negatives[0].similarity[self.name] = self.value


class EmbedderFaultStub(SignalStub):
    """An embedding has no length."""

    def add(self, groups: Sequence[Group]) -> None:
        super().add(groups)
        groups[1].response_embedding = [0.0, math.nan]


def faulty_signals_stub(options: Mapping[str, Any], reference: Reference) -> list[Signal]:
    return [SignalFaultStub(of_signal, reference) for of_signal in options.values()]


def faulty_embeddings_stub(options: Mapping[str, Any], reference: Reference) -> list[Signal]:
    return [EmbedderFaultStub(of_signal, reference) for of_signal in options.values()]


def refusal(model: Path, out: Path, strategies: str, components: Components) -> str:
    """What a job that makes such a number ends with. Nothing is left of it."""
    config = make_config(
        GenerateConfig, model=str(model), out=str(out), dataset="facts", limit=8, strategies=strategies,
        embedder="reference",
    )  # fmt: skip
    with without_ray(), pytest.raises(UserError) as caught:
        generate(config, components)
    assert not out.exists()
    return str(caught.value)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    ("strategies", "stub", "components", "said"),
    [
        (
            "an=2",
            EngineFaultStub,
            Components(engine=EngineFaultStub, scorer=ScorerStub, signals=signals_stub),
            r"strategy 'an' gives group [0-9a-f]{32} a number that is not finite: sampler_logp of negative 0 \(an\)",
        ),
        (
            "bn=2",
            ScorerFaultStub,
            Components(scorer=ScorerFaultStub, signals=signals_stub),
            r"the reference model, in float32, gives group [0-9a-f]{32} a number that is not finite: reference_logp of "
            r"negative 1 \(bn\)",
        ),
        (
            "tn=1,bn=1",
            SignalFaultStub,
            Components(scorer=ScorerStub, signals=faulty_signals_stub),
            r"ranking signal 'embedding' gives group [0-9a-f]{32} a number that is not finite: similarity 'embedding' "
            r"of negative 0 \(bn\)",
        ),
    ],
    ids=["sampler", "scorer", "signal"],
)
def test_the_job_stops_where_a_number_arises_that_is_not_finite(
    strategies: str,
    stub: Any,
    components: Components,
    said: str,
    value: float,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stub, "value", value)
    assert re.match(f"{said} is {value}. ", refusal(reference, tmp_path / "set", strategies, components))


@pytest.mark.parametrize("value", TOO_LARGE)
def test_a_number_that_would_be_kept_as_infinite_stops_the_job(
    value: float, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The difference of two finite rewards may be one."""
    monkeypatch.setattr(SignalFaultStub, "value", value)
    components = Components(scorer=ScorerStub, signals=faulty_signals_stub)
    said = refusal(reference, tmp_path / "set", "tn=1,bn=1", components)
    assert f"similarity 'embedding' of negative 0 (bn) is {value}, beyond float32. " in said


@pytest.mark.parametrize("name", ["reference_logp", "sampler_logp", "similarity", "response_embedding"])
def test_each_number_of_a_group_is_held_to_the_bound_of_float32(name: str) -> None:
    def with_value(value: float) -> list[Group]:
        changed = group(1)
        if name == "similarity":
            changed.negatives[1].similarity["rouge"] = value
        elif name == "response_embedding":
            changed.response_embedding = [value, 0.0]
        else:
            setattr(changed.negatives[0], name, value)
        return [changed]

    for value in (LARGEST, -LARGEST, 0.0):
        require_finite(with_value(value), "a test", "Look.")
    for value in TOO_LARGE:
        with pytest.raises(UserError, match=f"{name}.* is {re.escape(str(value))}, beyond float32"):
            require_finite(with_value(value), "a test", "Look.")


def test_an_embedding_that_is_not_finite_stops_the_job(reference: Path, tmp_path: Path) -> None:
    components = Components(scorer=ScorerStub, signals=faulty_embeddings_stub)
    assert "response_embedding is nan" in refusal(reference, tmp_path / "set", "bn=1", components)


@pytest.mark.parametrize("strategies", ["bn=1,tn=1", "mn=2"])
def test_a_model_whose_weights_are_not_finite_is_refused_with_the_group(
    strategies: str, reference: Path, tmp_path: Path
) -> None:
    """The group is named where a strategy draws from the model before it scores, too."""
    model = Path(shutil.copytree(reference, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    said = refusal(model, tmp_path / "set", strategies, Components(signals=signals_stub))
    assert re.match(r"the reference model, in float32, gives group [0-9a-f]{32} a number that is not finite", said)


@pytest.mark.parametrize("value", VALUES)
def test_verify_finds_each_number_that_is_not_finite(value: float) -> None:
    groups = [group(1), group(2)]
    truth, sampled, borrowed = groups[0], groups[0].negatives[0], groups[1].negatives[1]
    truth.reference_logp = sampled.sampler_logp = borrowed.reference_logp = value
    borrowed.similarity["rouge"] = value
    for each in groups:
        each.response_embedding = [1.0, 0.0]
    truth.response_embedding = [value, 0.0]
    found = number_problems(groups_to_table(groups, SIGNALS), "shard", SIGNALS)
    first, second = groups[0].id, groups[1].id
    assert found[:4] == [
        f"shard: reference_logp of the ground truth in group {first} is {value}",
        f"shard: reference_logp of a negative in group {second} is {value}",
        f"shard: sampler_logp of a negative in group {first} is {value}",
        f"shard: similarity 'rouge' of a negative in group {second} is {value}",
    ]
    assert f"shard: the embedding of group {first} has length" in found[4]
    assert len(found) == 5
