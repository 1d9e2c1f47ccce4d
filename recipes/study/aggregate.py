"""Differences over seeds, with the error that docs/results/hypotheses.md defines: pure functions of comparisons."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recipes.study.records import Comparison, Number

ERRORS = 2  # that a difference must exceed to count


@dataclass(frozen=True)
class OverSeeds:
    """A mean over seeds.

    Attributes:
        mean: of the seeds' means.
        error: see `over_seeds`.
        seeds: how many there are.
        paired: every seed's number is paired by prompt; always so of what is no difference.
    """

    mean: float
    error: float
    seeds: int
    paired: bool = True

    @property
    def counts(self) -> bool:
        """Whether it lies more than two errors from 0."""
        return abs(self.mean) > ERRORS * self.error


def over_seeds(numbers: Sequence[Number], paired: bool = True) -> OverSeeds:
    """The mean over seeds; its error is sqrt(mean of the seeds' squared errors + variance between seeds / seeds).

    Prompts are the same ones for all seeds, so that what the choice of prompts does to a mean is not averaged away by
    more seeds; what the seed of a training run does is. Of one seed the variance between seeds is not known: the error
    is that of the prompts alone. Equal values have no standard error, which counts as 0.

    Raises:
        ValueError: there is no number.
    """
    if not numbers:
        raise ValueError("a mean over seeds needs at least one")
    means = [number.mean for number in numbers]
    over_prompts = statistics.fmean((number.error or 0.0) ** 2 for number in numbers)
    between = statistics.variance(means) / len(means) if len(means) > 1 else 0.0
    return OverSeeds(statistics.fmean(means), math.sqrt(over_prompts + between), len(means), paired)


def values(comparisons: Iterable[Comparison], row: str, measure: str) -> OverSeeds | None:
    """A row's own number, over its seeds; None where it was not measured."""
    by_seed = {c.seed: c.values[measure] for c in comparisons if c.row == row and measure in c.values}
    return over_seeds(list(by_seed.values())) if by_seed else None


def difference(comparisons: Iterable[Comparison], row: str, against: str, measure: str) -> OverSeeds | None:
    """Row minus another one of the same seed, over seeds; None where both were not measured together.

    What a report does not pair by prompt is the difference of two means, whose errors add up.
    """
    numbers, paired = [], True
    for found in comparisons:
        if (found.row, found.against) != (row, against):
            continue
        if measure in found.differences:
            numbers.append(found.differences[measure])
        elif measure in found.values and measure in found.theirs:
            own, theirs = found.values[measure], found.theirs[measure]
            error = math.hypot(own.error or 0.0, theirs.error or 0.0)
            numbers.append(Number(own.mean - theirs.mean, error, min(own.n, theirs.n)))
            paired = False
    return over_seeds(numbers, paired) if numbers else None


def change(first: OverSeeds, second: OverSeeds) -> OverSeeds:
    """First minus second difference, as of other models: their errors add up as if they were independent."""
    error = math.hypot(first.error, second.error)
    return OverSeeds(first.mean - second.mean, error, min(first.seeds, second.seeds), paired=False)


def measures_of(comparisons: Iterable[Comparison]) -> list[str]:
    """All measures, by name."""
    return sorted({measure for found in comparisons for measure in found.values})
