"""Agreement of those who label the same things: shares of equal labels, Cohen's and Fleiss' kappa, with intervals."""

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import combinations

import numpy as np

from evaluation.metrics.statistics import Estimate, bootstrap, bootstrapped_share, weights_of

# The labels of one thing, one of each labeller; None where it gave none.
Labels = Sequence[Hashable | None]


def agreement(first: Labels, second: Labels) -> Estimate | None:
    """The share of things that both give the same label, of those that both label; None if there are none.

    Args:
        first, second: a label of each thing, in one order.
    """
    both = _labelled_by_all(list(zip(first, second, strict=True)))
    return bootstrapped_share([float(a == b) for a, b in both]) if both else None


def mean_agreement(things: Sequence[Labels]) -> Estimate | None:
    """The mean over things of the share of pairs of labellers that agree, of those that all label."""
    labelled = _labelled_by_all(things)
    shares = [float(np.mean([a == b for a, b in combinations(labels, 2)])) for labels in labelled]
    return bootstrapped_share(shares) if shares else None


def cohens_kappa(first: Labels, second: Labels) -> Estimate | None:
    """Cohen's kappa (1960): agreement beyond what two labellers with these shares of labels reach by chance.

    1: always; 0: as by chance. Standard error and interval by bootstrap over things; a resample with one label alone,
    which shows no agreement beyond chance, counts as 0.

    Returns:
        None where nothing is labelled by both, or by one label alone: chance then agrees always.
    """
    both = _labelled_by_all(list(zip(first, second, strict=True)))
    kinds = _numbers(both)
    if len(kinds) < 2:
        return None
    a, b = (np.eye(len(kinds))[[kinds[labels[side]] for labels in both]] for side in (0, 1))
    equal = (a * b).sum(axis=1)

    def kappa(weights: np.ndarray) -> np.ndarray:
        n = weights.sum(axis=1)
        chance = ((weights @ a) * (weights @ b)).sum(axis=1) / n**2
        return _beyond(weights @ equal / n, chance)

    return _estimated(kappa, len(both))


def fleiss_kappa(things: Sequence[Labels]) -> Estimate | None:
    """Fleiss' kappa (1971) of any number of labellers, over the things that all of them label; see `cohens_kappa`.

    Args:
        things: of each the labels, as many as labellers, two or more.
    """
    labelled = _labelled_by_all(things)
    kinds = _numbers(labelled)
    if len(kinds) < 2:
        return None
    counts = np.array([[sum(label == kind for label in labels) for kind in kinds] for labels in labelled], float)
    raters = len(labelled[0])
    equal = ((counts**2).sum(axis=1) - raters) / (raters * (raters - 1))

    def kappa(weights: np.ndarray) -> np.ndarray:
        n = weights.sum(axis=1)
        chance = ((weights @ counts / (n[:, None] * raters)) ** 2).sum(axis=1)
        return _beyond(weights @ equal / n, chance)

    return _estimated(kappa, len(labelled))


def _estimated(kappa: Callable[[np.ndarray], np.ndarray], n: int) -> Estimate:
    """The estimate of a statistic of n things: weights [R, n] -> values [R]."""
    (value,) = kappa(np.ones((1, n)))
    error, interval = bootstrap(n, lambda indices: kappa(weights_of(indices)))
    if error == 0:  # all resamples alike show no spread
        return Estimate(float(value), math.nan, n)
    return Estimate(float(value), error, n, interval)


def _beyond(observed: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Agreement beyond chance, [R]; 0 where chance agrees always."""
    room = 1 - chance
    some = room > 1e-12
    return np.where(some, (observed - chance) / np.where(some, room, 1.0), 0.0)


def _labelled_by_all(things: Sequence[Labels]) -> list[Labels]:
    return [labels for labels in things if None not in labels]


def _numbers(things: Sequence[Labels]) -> dict[Hashable, int]:
    return {label: number for number, label in enumerate(dict.fromkeys(label for labels in things for label in labels))}
