"""Estimates with their uncertainty: means, standard errors, percentile bootstraps over prompts."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist

import numpy as np

REPLICATES = 1000
LEVEL = 0.95
ERRORS = NormalDist().inv_cdf((1 + LEVEL) / 2)  # standard errors that a difference must exceed


@dataclass(frozen=True)
class Estimate:
    """A value with its uncertainty.

    Attributes:
        mean: the estimate.
        standard_error: nan where there is none: of one value, or of equal ones, which show no spread to estimate.
        n: examples, or groups, that it is over.
        interval: at LEVEL, of the bootstrap; of a difference see `paired_difference`, of equal values `share`; None
            where it was not made.
    """

    mean: float
    standard_error: float
    n: int
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> "Estimate":
        """The mean of values. Raises ValueError for none; the standard error of equal values is nan."""
        if len(values) == 0:
            raise ValueError("a mean needs at least one value")
        array = np.asarray(values, dtype=np.float64)
        error = float(array.std(ddof=1) / math.sqrt(len(array))) if array.min() < array.max() else math.nan
        return cls(float(array.mean()), error, len(array))


@dataclass(frozen=True)
class Measurement:
    """One number of a report.

    Attributes:
        model: its name.
        decoding: how its answers were made, "" for what needs no answers.
        metric: such as "win_rate" or "nll".
        against: what the answers were compared with, "truth" or a model's name; "" where nothing was.
        estimate: the number.
    """

    model: str
    decoding: str
    metric: str
    estimate: Estimate
    against: str = ""


@dataclass(frozen=True)
class Difference:
    """By how much a number of one model exceeds another model's, over the prompts, or groups, that both have one for.

    Attributes:
        model, other: whose, less whose.
        decoding, metric, against: as of the two measurements.
        estimate: of the differences, see `paired_difference`.
    """

    model: str
    other: str
    decoding: str
    metric: str
    estimate: Estimate
    against: str = ""


def resamples(n: int, replicates: int = REPLICATES, seed: int = 0) -> np.ndarray:
    """[replicates, n] indices drawn with replacement: the same ones for equal n and seed, so that models are paired."""
    return np.random.default_rng(seed).integers(n, size=(replicates, n))


def bootstrap(
    n: int, statistic: Callable[[np.ndarray], np.ndarray], *, replicates: int = REPLICATES, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Standard error and percentile interval of a statistic of n examples.

    Args:
        statistic: indices [R, n] -> values [R], of each resample.
    """
    return _spread(statistic(resamples(n, replicates, seed)))


def _spread(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(values.std(ddof=1)), (float(low), float(high))


def weights_of(indices: np.ndarray) -> np.ndarray:
    """How often each of n examples was drawn in each resample: indices [R, n] -> [R, n]."""
    rows, n = indices.shape
    flat = (indices + n * np.arange(rows)[:, None]).ravel()
    return np.bincount(flat, minlength=rows * n).reshape(rows, n).astype(np.float64)


def bootstrapped_mean(values: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of values with bootstrap standard error and interval.

    Raises ValueError for none; equal values have neither, as their resamples are all alike.
    """
    found = Estimate.of(values)
    if math.isnan(found.standard_error):
        return found
    error, interval = _spread(_weights(found.n) @ np.asarray(values, dtype=np.float64) / found.n)
    return replace(found, standard_error=error, interval=interval)


@functools.lru_cache(maxsize=1)
def _weights(n: int) -> np.ndarray:
    """`weights_of` the resamples; kept, since each number of a report and each pair of its models asks for the same."""
    found = weights_of(resamples(n))
    found.setflags(write=False)
    return found


def paired_difference(values: Sequence[float | None], theirs: Sequence[float | None]) -> Estimate | None:
    """By how much the mean of values exceeds that of another model's, paired by prompt.

    What makes a prompt easy or hard for both cancels, so that the interval is narrower than two separate ones suggest.
    It is ERRORS of the bootstrap's standard errors to either side, so that it holds 0 just where the error says so too.

    Args:
        values, theirs: in the same order of prompts; None where there is none.

    Returns:
        The mean difference over the prompts that both have a value for; None if there are none.

    Raises:
        ValueError: different numbers of prompts.
    """
    both = [a - b for a, b in zip(values, theirs, strict=True) if a is not None and b is not None]
    if not both:
        return None
    found = bootstrapped_mean(both)
    if math.isnan(found.standard_error):
        return found
    reach = ERRORS * found.standard_error
    return replace(found, interval=(found.mean - reach, found.mean + reach))


def all_differences(
    metric: str, decoding: str, values: Mapping[str, Sequence[float | None]], against: str = ""
) -> list[Difference]:
    """The paired differences between any two models, each later one less each earlier one.

    Args:
        values: of each model, all in the same order of prompts; None where there is none.
    """
    pairs = [(m, other, paired_difference(values[m], values[other])) for other, m in combinations(values, 2)]
    return [Difference(m, other, decoding, metric, found, against) for m, other, found in pairs if found]


def share(values: Sequence[float]) -> Estimate:
    """`Estimate.of` values from 0 to 1, with an interval where all of two or more are equal.

    Such values show no spread, but are not sure. Of a share of which all n are alike the exact binomial bound (Clopper
    and Pearson) is that at most 1 - 0.025^(1/n) are unlike; these lie from 0 to 1, which bounds the mean. Of 0s, or 1s,
    that is the exact interval itself.
    """
    found = Estimate.of(values)
    if found.n < 2 or not math.isnan(found.standard_error):
        return found
    alike = ((1 - LEVEL) / 2) ** (1 / found.n)
    return replace(found, interval=(found.mean * alike, 1 - (1 - found.mean) * alike))


def bootstrapped_share(values: Sequence[float]) -> Estimate:
    """`bootstrapped_mean` of values from 0 to 1; of equal ones `share`."""
    found = share(values)
    return found if math.isnan(found.standard_error) else bootstrapped_mean(values)
