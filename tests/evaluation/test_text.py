"""Statistics of texts, counted by hand."""

import math

import pytest

from data.schema import Group
from evaluation.metrics.base import PromptEvidence
from evaluation.metrics.statistics import Estimate
from evaluation.metrics.text import Text, distinct, early_ends, ends_in_loop, text_values
from evaluation.subject import Part
from negatives_gen.models.engine import Sample


def answer(text: str, tokens: int = 3, finish_reason: str = "stop") -> Sample:
    return Sample([5] * tokens, text, finish_reason, -1.0, None)


def estimates(samples: list[Sample]) -> dict[str, Estimate]:
    evidence = PromptEvidence(Text.columns, {("m", "greedy"): text_values(samples)})
    return {m.metric: m.estimate for m in evidence.measurements(Part("test", range(len(samples))))}


def test_lengths_of_answers_and_the_share_cut_at_the_limit() -> None:
    found = estimates([answer("One two.", 4), answer("Three", 2, "length"), answer(" \n", 0), answer("Four", 2)])
    assert found["answer_tokens"].mean == 2.0
    assert found["answer_tokens"].standard_error == pytest.approx(math.sqrt((4 + 0 + 4 + 0) / 3 / 4))
    assert found["answer_characters"].mean == (8 + 5 + 2 + 4) / 4
    assert found["hit_limit"].mean == 0.25
    assert found["empty"].mean == 0.25
    assert found["loops"].mean == 0
    assert {e.n for e in (found["answer_tokens"], found["hit_limit"], found["empty"], found["loops"])} == {4}


def test_an_early_end_is_one_before_half_of_the_ground_truths_tokens() -> None:
    groups = [Group("g", "p", "r", [1], [7] * n) for n in (10, 10, 9, 10, 10)]
    # One that was cut did not end, however short it is; one that says nothing ended at once.
    said = [answer("a", 4), answer("a", 5), answer("a", 5), answer("a", 4, "length"), answer("", 1)]
    assert early_ends(said, groups) == [1, 0, 0, 0, 1]
    with pytest.raises(ValueError):
        early_ends(said, groups[:2])


def test_distinct_counts_ngrams_of_lower_cased_words() -> None:
    # Words: the cat the cat sat. 3 of 5 words, 3 of 4 pairs (the cat twice), 3 of 3 triples.
    words = ["the", "cat", "the", "cat", "sat"]
    assert [distinct(words, n) for n in (1, 2, 3)] == [3 / 5, 3 / 4, 1.0]
    found = estimates([answer("The cat  the\ncat sat"), answer("a b c d")])
    assert found["distinct_1"].mean == (3 / 5 + 1) / 2
    assert found["distinct_2"].mean == (3 / 4 + 1) / 2
    assert found["distinct_3"].mean == 1.0


def test_answers_too_short_for_an_ngram_are_left_out_of_it() -> None:
    found = estimates([answer(""), answer("no"), answer("no no"), answer("no no no no no")])
    assert found["distinct_1"].n == 3
    assert found["distinct_1"].mean == pytest.approx((1 + 1 / 2 + 1 / 5) / 3)
    assert found["distinct_2"].n == 2
    assert found["distinct_2"].mean == (1 + 1 / 4) / 2
    assert (found["repetition"].n, found["repetition"].mean) == (1, 1 / 2)  # two 4-grams, both "no no no no"
    assert found["empty"].mean == 0.25


def test_an_ngram_measure_that_no_answer_is_long_enough_for_is_missing() -> None:
    found = estimates([answer("one two"), answer("")])
    assert set(found) == {
        *("answer_tokens", "answer_characters", "hit_limit", "empty", "loops", "distinct_1", "distinct_2")
    }
    assert estimates([]) == {}


def test_repetition_is_the_share_of_repeated_4_grams() -> None:
    # 8 words, 5 4-grams: abcd bcda cdab dabc abcd; one is a repetition.
    (found,) = [estimates([answer("a b c d a b c d")])["repetition"]]
    assert found.mean == pytest.approx(1 / 5)
    assert estimates([answer("a b c d e f g h")])["repetition"].mean == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("well he said that he said that", True),  # a phrase of three, twice
        ("he said that he said that well", False),  # not at the end
        ("a b a b", False),  # a phrase of two, twice: not yet
        ("a b " * 60, True),  # a phrase of two, sixty times
        ("no " * 51, True),
        ("no " * 50, False),
        ("x y z", False),
        ("", False),
        (" ".join(f"w{i}" for i in range(90)) * 1 + " " + " ".join(f"w{i}" for i in range(90)), True),  # of 90 words
        (" ".join(f"w{i}" for i in range(91)) * 1 + " " + " ".join(f"w{i}" for i in range(91)), False),  # of 91
    ],
)
def test_an_answer_that_ends_by_repeating_itself_is_a_loop(text: str, expected: bool) -> None:
    assert ends_in_loop(text.split()) is expected


def test_share_of_answers_in_a_loop() -> None:
    found = estimates([answer("and so on and so on and so on"), answer("and so on"), answer("")])
    assert found["loops"].mean == pytest.approx(1 / 3)
