"""Ranks by similarity. They are never stored: each is derived here, for whichever candidates are chosen."""

import sys
from collections.abc import Sequence

import numpy as np

from data.schema import Candidate

UNRANKED = -1  # of a candidate whose ranking signal has no value for it


def ranks_from_similarity(similarity: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Ranks of the candidates of each group, 0 = best: the ground truth first, then falling similarity.

    Args:
        similarity: [..., K]; that of the ground truth, in column 0, is ignored. Ties keep the candidates' order; nan
            counts as the lowest.
        mask: [..., K]; candidates that do not exist come last.

    Returns:
        [..., K], int64.
    """
    # All finite, so that no negative passes the ground truth's inf, nor a missing candidate's -inf anything.
    keys = np.nan_to_num(similarity.astype(np.float64), nan=-sys.float_info.max)
    if mask is not None:
        keys[~mask] = -np.inf
    keys[..., 0] = np.inf
    return np.argsort(np.argsort(-keys, axis=-1, kind="stable"), axis=-1)


def known_ranks(similarity: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Ranks by `ranks_from_similarity`, but UNRANKED where a negative's similarity is nan, which is not the lowest."""
    ranks = ranks_from_similarity(similarity, mask)
    ranks[..., 1:][np.isnan(similarity[..., 1:])] = UNRANKED
    return ranks


def similarities_of(negatives: Sequence[Candidate], signal: str) -> np.ndarray:
    """[K] for the functions above, of a group's negatives; nan where there is no value, 0 for the ground truth."""
    values = [candidate.similarity.get(signal) for candidate in negatives]
    return np.array([0.0, *(np.nan if value is None else value for value in values)])


def ranks_of(negatives: Sequence[Candidate], signal: str) -> list[int]:
    """Ranks of a group's negatives by a ranking signal, 1 = most similar, those without a value last.

    For those who look at a group: the ground truth has 0.
    """
    return ranks_from_similarity(similarities_of(negatives, signal))[1:].tolist()
