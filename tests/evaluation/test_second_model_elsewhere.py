"""Likelihoods under a model that is not on the CPU: no tensor is left there, and the numbers are the same."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.schema import Group
from data.shards import NegativeSet
from evaluation.answers.cache import Store
from evaluation.answers.generations import GenerationSet
from evaluation.metrics.likelihood import SecondModel, second_model_logps
from evaluation.metrics.logps import candidate_logps, truth_logps
from evaluation.on_demand import OnDemand
from negatives_gen.models.engine import Sample
from tests.support.pretended_device import DEVICE, Elsewhere, pretended_device
from trainer.scoring.scorer import Scorer

Load = Callable[[], Scorer]


def likelihoods(groups: list[Group], store: Path, second: SecondModel, load: Load) -> list[float]:
    """All that evaluation computes of log-probabilities: of answers with and without prompts, of truths, candidates."""
    second.scorer = OnDemand(load)
    negatives = [group.negatives[0] for group in groups]
    samples = [Sample(negative.ids, negative.text, "stop", -1.0, None) for negative in negatives]
    same = {"model": {"tokenizer_sha256": second.identity["tokenizer_sha256"]}}
    generations = GenerationSet(same, "hash", [group.id for group in groups], samples)
    found: list[float] = []
    for without_prompt in (False, True):
        answers = second_model_logps(Store(str(store)), generations, groups, second, without_prompt=without_prompt)
        found += [logp for logp in answers.logps if logp is not None]
    found += truth_logps(Store(str(store)), second.identity, groups, load)
    candidates = candidate_logps(Store(str(store)), second.identity, groups, second.dtype, load)
    return found + [logp for group in candidates for logp in group]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_likelihoods_of_answers_truths_and_candidates(
    dtype: str, tolerance: float, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    groups = list(NegativeSet(str(negative_set)).groups())[:6]
    second = SecondModel(str(reference), dtype=dtype)
    expected = likelihoods(groups, tmp_path / "here", second, lambda: Scorer.load(str(reference), dtype=dtype))
    assert len(expected) == 6 * (1 + 1 + 1 + 4)
    with pretended_device():
        scorer = Scorer.load(str(reference), dtype=dtype, device=str(DEVICE))
        assert {type(weight.data) for weight in scorer.model.parameters()} == {Elsewhere}
        found = likelihoods(groups, tmp_path / "there", second, lambda: scorer)
    assert found == pytest.approx(expected, abs=tolerance)
