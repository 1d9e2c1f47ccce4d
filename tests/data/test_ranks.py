"""data/ranks.py: ranks from similarities, for trainer, evaluation and all that shows a group."""

import math

import numpy as np
import pytest

from data.ranks import UNRANKED, known_ranks, ranks_from_similarity, ranks_of, similarities_of
from data.schema import Candidate


def test_ranks_put_the_ground_truth_first_then_falling_similarity() -> None:
    similarity = np.array([[-1.0, 0.2, 0.9, -0.5], [0.0, 3.0, 2.0, 1.0]])
    assert ranks_from_similarity(similarity).tolist() == [[0, 2, 1, 3], [0, 1, 2, 3]]
    assert ranks_from_similarity(similarity[0]).tolist() == [0, 2, 1, 3]
    assert similarity[0, 0] == -1  # what is given is not changed


def test_ties_in_similarity_are_broken_by_position() -> None:
    assert ranks_from_similarity(np.array([[1.0, 0.5, 0.7, 0.5, 0.7]])).tolist() == [[0, 3, 1, 4, 2]]
    assert ranks_from_similarity(np.zeros((1, 200), np.float32)).tolist() == [list(range(200))]


def test_candidates_that_do_not_exist_rank_last() -> None:
    ranks = ranks_from_similarity(np.array([[1.0, 0.9, 0.1, 0.5]]), np.array([[True, False, True, True]]))
    assert ranks.tolist() == [[0, 3, 2, 1]]
    assert ranks.dtype == np.int64


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_no_similarity_beats_the_ground_truth_and_nan_is_the_lowest(garbage: float) -> None:
    ranks = ranks_from_similarity(np.array([[garbage, -0.9, garbage, 0.3, 0.5]]))
    assert ranks.tolist() == [[0, 4, 1, 3, 2] if garbage == math.inf else [0, 3, 4, 2, 1]]


def test_infinite_and_tied_similarities_together_keep_the_order_of_candidates() -> None:
    inf = math.inf
    ranks = ranks_from_similarity(np.array([[0.0, 0.5, inf, -inf, 0.5, inf, math.nan, -inf]]))
    # +inf twice, 0.5 twice, then -inf, nan and -inf, which all are the lowest.
    assert ranks.tolist() == [[0, 3, 1, 5, 4, 2, 6, 7]]
    mask = np.array([[True, True, False, True, True, True, True, True]])
    assert ranks_from_similarity(np.array([[0.0, 0.5, inf, -inf, 0.5, inf, math.nan, -inf]]), mask).tolist() == [
        [0, 2, 7, 4, 3, 1, 5, 6]
    ]


def test_nan_still_ranks_before_candidates_that_do_not_exist() -> None:
    similarity, mask = np.array([[1.0, 0.9, math.nan, 0.5]]), np.array([[True, False, True, True]])
    assert ranks_from_similarity(similarity, mask).tolist() == [[0, 3, 2, 1]]


def test_ranks_of_negatives_start_at_one_and_what_is_not_known_is_lowest() -> None:
    similarities: list[dict[str, float | None]] = [{"a": 0.5}, {}, {"a": 0.9}, {"a": math.nan}]
    negatives = [Candidate("an", [1], "", similarity=similarity) for similarity in similarities]
    assert ranks_of(negatives, "a") == [2, 3, 1, 4]


def test_a_similarity_that_is_not_known_gives_no_rank():
    negatives = [Candidate("bn", [1], "", similarity={"a": s}) for s in (0.5, None, 0.9)]
    similarity = similarities_of(negatives, "a")
    assert known_ranks(similarity).tolist() == [0, 2, UNRANKED, 1]
    mask = np.array([[True, True, True, False]])
    assert known_ranks(similarity[None], mask).tolist() == [[0, 1, UNRANKED, 3]]
    assert ranks_of(negatives, "a") == [2, 3, 1]  # to look at: last
