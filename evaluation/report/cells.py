"""Numbers as the cells of tables."""

import math
import re
from dataclasses import dataclass

from evaluation.gaps import FEWEST, beyond
from evaluation.metrics.columns import Column
from evaluation.metrics.statistics import ERRORS, LEVEL, Estimate

DIGITS = re.compile(r"\.(\d+)([f%])}")  # decimal places of a form
MOST_MORE = 10
NOTHING = "\u2013"
INTERVAL = f"{LEVEL:.0%} interval"
BETTER = (
    f"in its column and decoding better than every other model by more than {ERRORS:.2f} standard errors of the "
    f"difference, over {FEWEST} prompts or more"
)
BEST_MEANING = f"Bold: {BETTER}"
INTERVAL_MEANING = (
    f"of the estimate to its left: percentile bootstrap over the prompts, of a difference {ERRORS:.2f} standard errors "
    "to either side; of equal scores, the exact binomial bound"
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


def cell(estimate: Estimate | None, column: Column, *, best: bool = False) -> Cell:
    """Mean and standard error; an estimate that is no number is a dash, one that was not made is empty."""
    if estimate is None:
        return Cell()
    if math.isnan(estimate.mean):
        return Cell(NOTHING)
    form = _form(estimate, column)
    error = "" if math.isnan(estimate.standard_error) else form.replace("+", "").format(estimate.standard_error)
    return Cell(form.format(estimate.mean), error.rstrip("%"), best)


def interval(estimate: Estimate | None, column: Column) -> Cell:
    """An estimate's interval as a cell, empty where there is none."""
    if estimate is None or estimate.interval is None:
        return Cell()
    low, high = (_form(estimate, column).format(bound) for bound in estimate.interval)
    return Cell(f"{low.rstrip('%')} to {high}")


def in_full(form: str, mean: float, error: float, errors: float = ERRORS) -> str:
    """A difference's form, with more decimal places where rounded numbers would say otherwise of it than exact ones.

    Of +0.2% ± 0.1, say, nobody can tell whether it is 1.5 or 2.9 errors; what is told apart is written +0.24% ± 0.11.

    Args:
        error: standard error; nan for none.
        errors: standard errors beyond which a difference counts.
    """
    digits = DIGITS.search(form)
    if digits is None:
        return form
    first, scale = int(digits[1]), 100 if digits[2] == "%" else 1
    counts = beyond(mean, error, errors)
    for places in range(first, first + MOST_MORE):
        if beyond(round(scale * mean, places), round(scale * error, places), errors) == counts:
            return f"{form[: digits.start(1)]}{places}{form[digits.end(1) :]}"
    return form


def _form(estimate: Estimate, column: Column) -> str:
    if not column.is_difference:
        return column.form
    return in_full(column.form, estimate.mean, estimate.standard_error)
