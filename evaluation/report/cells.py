"""Numbers as the cells of tables."""

import math
from dataclasses import dataclass

from evaluation.gaps import ERRORS, FEWEST
from evaluation.metrics.statistics import LEVEL, Estimate

NOTHING = "\u2013"
INTERVAL = f"{LEVEL:.0%} interval"
BETTER = (
    f"in its column and decoding better than every other model by more than {ERRORS:.2f} standard errors of the "
    f"difference, over {FEWEST} prompts or more"
)
BEST_MEANING = f"Bold: {BETTER}"
INTERVAL_MEANING = (
    "percentile bootstrap over the prompts, of the estimate to its left; of equal scores, the exact binomial bound"
)


@dataclass(frozen=True)
class Cell:
    """A value, and its standard error where there is one.

    Attributes:
        best: it is better than all others of its column and decoding, beyond the error of each difference.
    """

    value: str = ""
    error: str = ""
    best: bool = False

    @property
    def text(self) -> str:
        return f"{self.value} ± {self.error}" if self.error else self.value


def cell(estimate: Estimate | None, form: str, *, best: bool = False) -> Cell:
    """Mean and standard error; an estimate that is no number is a dash, one that was not made is empty."""
    if estimate is None:
        return Cell()
    if math.isnan(estimate.mean):
        return Cell(NOTHING)
    error = "" if math.isnan(estimate.standard_error) else form.replace("+", "").format(estimate.standard_error)
    return Cell(form.format(estimate.mean), error.rstrip("%"), best)


def interval(estimate: Estimate | None, form: str) -> Cell:
    """An estimate's interval as a cell, empty where there is none."""
    if estimate is None or estimate.interval is None:
        return Cell()
    low, high = (form.format(bound) for bound in estimate.interval)
    return Cell(f"{low.rstrip('%')} to {high}")
