"""Ranking signals, each against numbers worked out by hand."""

import math

import pytest

from data.schema import Candidate, Group
from negatives_gen.signals import load_signals, signal_class
from negatives_gen.signals.base import SignalOptions

TRUTH = "the cat sat on the mat"
ODD = ("", "   ", "🙂🙂", "שלום עולם", "\x00", "a" * 5000)


def values(name: str, texts: list[str], truth: str = TRUTH, **options: str) -> list[float]:
    group = Group("g", "Where did the cat sit?", truth, [1], [2, 0], negatives=[Candidate("an", [3], t) for t in texts])
    (signal,) = load_signals([name], SignalOptions(**{"model": "", **options}))
    signal.add([group])
    return [c.similarity[name] for c in group.negatives]


def test_rouge_is_the_f1_of_the_longest_common_subsequence_of_words() -> None:
    # "the cat on the mat": 5 of its 5 words, 5 of the truth's 6. "mat the": 1 of 2, 1 of 6.
    found = values("rouge", ["the cat on the mat", "Mat, the!", TRUTH, "dogs bark"])
    assert found == pytest.approx([2 * 5 / (5 + 6), 2 * 1 / (2 + 6), 1.0, 0.0])
    assert values("rouge", ["שלום עולם", "שלום"], truth="שלום עולם") == pytest.approx([1.0, 2 / 3])


def test_bleu_is_the_geometric_mean_of_n_gram_precisions_with_a_brevity_penalty() -> None:
    # "the cat on the mat": unigrams 5/5, bigrams 3/4, trigrams 1/3, fourgrams 0/2 smoothed to 1/4 of one; 5 words to 6.
    expected = math.exp(1 - 6 / 5) * (1 * 3 / 4 * 1 / 3 * 1 / 4) ** 0.25
    assert values("bleu", ["the cat on the mat", TRUTH]) == pytest.approx([expected, 1.0], abs=1e-6)


@pytest.mark.parametrize("name", ["rouge", "bleu"])
def test_odd_texts_give_numbers(name: str) -> None:
    for truth in (TRUTH, *ODD):
        for value in values(name, list(ODD), truth=truth):
            assert 0 <= value <= 1


@pytest.mark.parametrize("name", ["rouge", "bleu"])
def test_what_has_a_value_keeps_it(name: str) -> None:
    group = Group("g", "p", TRUTH, [1], [2, 0], negatives=[Candidate("an", [3], TRUTH, similarity={name: -5.0})])
    (signal,) = load_signals([name], SignalOptions(""))
    signal.add([group, Group("h", "p", "r", [1], [2, 0])])
    assert group.negatives[0].similarity == {name: -5.0}


@pytest.mark.parametrize("name", ["rouge", "bleu"])
def test_the_manifest_says_which_version_of_which_library(name: str) -> None:
    identity = signal_class(name).identity(SignalOptions(""))
    assert identity["library"] in ("rouge-score", "sacrebleu")
    assert identity["version"][0].isdigit()
