"""How well answers identify their prompts: places counted by hand, by an embedder that knows numbers alone."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data.schema import Group
from evaluation.answers.answer_sets import AnswerSet
from evaluation.answers.cache import Store
from evaluation.answers.generations import GenerationSet
from evaluation.measure import gather
from evaluation.metrics.embeddings import EmbedderOptions
from evaluation.metrics.relevance import PROMPTS, Relevance, draw_others, found_by
from evaluation.metrics.similarity import Similarity
from evaluation.subject import Evaluation, Part
from negatives_gen.models.engine import Sample

DIMENSIONS = 100


class NumbersEmbedderStub:
    """A text is the sum of the directions of the numbers in it; one without a number has a direction of its own."""

    embedded: list[str]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.embedded += texts
        vectors = np.zeros((len(texts), DIMENSIONS + 1), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            vector[[int(number) for number in re.findall(r"\d+", text)] or [DIMENSIONS]] = 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def groups_of(n: int) -> list[Group]:
    return [Group(f"g{i}", f"Template. Question {i}?", "truth", [1], [2, 0], query=f"Question {i}?") for i in range(n)]


def answers(model: str, groups: Sequence[Group], texts: Sequence[str]) -> AnswerSet:
    samples = [Sample([1, 2], text, "stop", -2.0, None) for text in texts]
    return AnswerSet(model, "sample", groups, GenerationSet({}, model, [g.id for g in groups], samples))


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> NumbersEmbedderStub:
    stub = NumbersEmbedderStub()
    stub.embedded = []
    monkeypatch.setattr("evaluation.metrics.embeddings.load_embedder", lambda _: stub)
    return stub


def evaluation(tmp_path: Path, n: int) -> Evaluation:
    test = Part("test", range(n))
    return Evaluation("d", {"task": "t"}, "all", n, "", (), None, (), test, None, 0, Store(str(tmp_path / "store")))


def test_the_place_of_the_own_prompt_among_all() -> None:
    assert found_by(np.array([0.9, 0.1, 0.8])) == (1.0, 1.0)
    assert found_by(np.array([0.5, 0.9, 0.8, 0.1])) == (0.0, 1 / 3)
    # Of equal ones, in random order: first in half of the orders, second in the other half.
    assert found_by(np.array([0.5, 0.5, 0.1])) == (0.5, (1 + 1 / 2) / 2)
    assert found_by(np.array([0.5, 0.9, 0.5], dtype=np.float32)) == (0.0, (1 / 2 + 1 / 3) / 2)
    assert found_by(np.array([0.5, 0.5 + 1e-7])) == found_by(np.array([0.5, 0.5]))


def test_others_follow_from_seed_and_id_and_are_different_prompts() -> None:
    groups = groups_of(90)
    drawn = draw_others(groups, 0)
    for own, others in enumerate(drawn):
        assert len(set(others)) == len(others) == PROMPTS - 1
        assert own not in others
    assert drawn == draw_others(groups, 0)
    assert drawn[0] != draw_others(groups, 1)[0]
    assert drawn[0] != drawn[1]
    turned = draw_others(groups[::-1], 0)
    assert [[groups[i].id for i in others] for others in drawn] == [
        [groups[::-1][i].id for i in others] for others in turned[::-1]
    ]
    # Each of the others is drawn about equally often: 90 draws of 63 of 89.
    counts = np.bincount([i for others in drawn for i in others], minlength=90)
    assert counts.sum() == 90 * 63
    assert counts.min() > 63 - 5 * np.sqrt(90 * 63 / 89 * 26 / 89)


def test_a_query_asked_twice_is_one_prompt() -> None:
    groups = [*groups_of(3), Group("again", "p", "truth", [1], [2, 0], query="Question 1?")]
    assert [sorted(groups[i].query for i in others) for others in draw_others(groups, 0)] == [
        ["Question 1?", "Question 2?"],
        ["Question 0?", "Question 2?"],
        ["Question 0?", "Question 1?"],
        ["Question 0?", "Question 2?"],
    ]
    assert draw_others(groups[1:2], 0) == [[]]


def test_answers_are_told_by_the_query_and_paired_with_the_baseline(
    tmp_path: Path, reference: Path, embedder: NumbersEmbedderStub
) -> None:
    groups = groups_of(80)
    metric = Relevance(EmbedderOptions(str(reference)), evaluation(tmp_path, 80))
    right, none = [f"About {i}." for i in range(80)], ["I do not know."] * 80
    both = [f"{i} or {draw_others(groups, 0)[i][0]}" for i in range(80)]
    sets = [answers("a", groups, none), answers("b", groups, right), answers("c", groups, both)]
    evidence = metric.gather(sets)
    values = {model: values for (model, _), values in evidence.values.items()}
    assert values["a"]["relevance"] == pytest.approx([1 / 64] * 80)
    assert values["b"] == {"relevance": [1.0] * 80, "reciprocal_rank": [1.0] * 80}
    assert values["c"]["relevance"] == [0.5] * 80
    assert values["c"]["reciprocal_rank"] == [0.75] * 80
    found = {(m.model, m.metric): m.estimate for m in evidence.measurements(Part("test", range(40)), "a")}
    assert found["c", "relevance_difference"].mean == pytest.approx(0.5 - 1 / 64)
    assert found["b", "reciprocal_rank"].interval == pytest.approx((0.025 ** (1 / 40), 1))
    assert evidence.notes(Part("test", range(40))) == []


def test_an_answer_is_embedded_once_for_all_metrics(
    tmp_path: Path, reference: Path, embedder: NumbersEmbedderStub
) -> None:
    subject = evaluation(tmp_path, 3)
    metrics = [kind(EmbedderOptions(str(reference)), subject) for kind in (Similarity, Relevance)]
    groups = groups_of(3)
    sets = [answers(model, groups, [f"{model} {i}" for i in range(3)]) for model in "ab"]
    assert metrics[0].identity() == metrics[1].identity()
    gather(metrics, [], sets)
    texts = [*(group.query for group in groups), "truth", "truth", "truth", *sets[0].texts, *sets[1].texts]
    assert sorted(embedder.embedded) == sorted(texts)


def test_fewer_prompts_are_told_of(tmp_path: Path, reference: Path, embedder: NumbersEmbedderStub) -> None:
    part = Part("test", range(2))
    for n, said in ((2, "2 prompts, not 64, as there are no more: chance finds one in 2."), (1, "there is no other")):
        metric = Relevance(EmbedderOptions(str(reference)), evaluation(tmp_path, n))
        evidence = metric.gather([answers("a", groups_of(n), [f"{i}" for i in range(n)])])
        assert evidence.values["a", "sample"]["relevance"] == [1.0 if n > 1 else None] * n
        (note,) = evidence.notes(part)
        assert said in note
