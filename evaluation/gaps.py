"""By how much one model exceeds another in what was measured, and whether that is beyond its error."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from evaluation.metrics.columns import DIFFERENCE
from evaluation.metrics.statistics import ERRORS, Difference, Estimate, Measurement

# Of fewer prompts a standard error is itself a guess: nothing is told apart.
FEWEST = 20


class Gaps:
    """Differences between models, from what a report holds: paired by prompt where it was, else of two means.

    Those from a baseline are in a report twice, alike; of an older one those in its columns count.

    Args:
        baseline: model that columns of differences are from.
    """

    def __init__(self, measurements: Iterable[Measurement], differences: Iterable[Difference] = (), baseline: str = ""):
        self._measured = {(m.model, m.decoding, m.metric, m.against): m.estimate for m in measurements}
        self._paired = {(d.model, d.other, d.decoding, d.metric, d.against): d.estimate for d in differences}
        self._baseline = baseline

    def between(self, measured: Measurement, other: str) -> Estimate | None:
        """By how much a measurement exceeds that of another model; None where that is not known.

        What is not paired by prompt has both errors, added as squares: too much where a prompt is hard for both.
        """
        if found := self.paired(measured, other):
            return found
        theirs = self._measured.get((other, measured.decoding, measured.metric, measured.against))
        if theirs is None:
            return None
        ours = measured.estimate
        errors = ours.standard_error, theirs.standard_error
        if any(map(math.isnan, errors)):
            return None
        return Estimate(ours.mean - theirs.mean, math.hypot(*errors), min(ours.n, theirs.n))

    def paired(self, measured: Measurement, other: str) -> Estimate | None:
        """By how much a measurement exceeds that of another model, by prompt; None where it was not paired."""
        model, of = measured.model, (measured.decoding, measured.metric, measured.against)
        if found := self._from_baseline(model, other, of) or self._paired.get((model, other, *of)):
            return found
        found = self._from_baseline(other, model, of) or self._paired.get((other, model, *of))
        return _reversed(found) if found else None

    def _from_baseline(self, model: str, other: str, of: tuple[str, str, str]) -> Estimate | None:
        decoding, metric, against = of
        return self._measured.get((model, decoding, metric + DIFFERENCE, against)) if other == self._baseline else None


def distinguishable(gap: Estimate | None) -> bool:
    """Whether a difference is beyond its error: of more than ERRORS of its standard errors, and FEWEST prompts."""
    return gap is not None and gap.n >= FEWEST and beyond(gap.mean, gap.standard_error)


def beyond(mean: float, error: float, errors: float = ERRORS) -> bool:
    """Whether a difference is more than so many of its standard errors from 0; without an error, not 0."""
    return abs(mean) > (0.0 if math.isnan(error) else errors * error)


def bounds(gap: Estimate) -> tuple[float, float]:
    """A difference's interval: ERRORS standard errors to either side; of equal values, itself."""
    error = 0.0 if math.isnan(gap.standard_error) else ERRORS * gap.standard_error
    return gap.mean - error, gap.mean + error


def _reversed(gap: Estimate) -> Estimate:
    return replace(gap, mean=-gap.mean, interval=None)


@dataclass(frozen=True)
class Ranked:
    """Measurements of one number, the best first, and which others are not distinguishable from it."""

    ordered: tuple[Measurement, ...]
    alike: tuple[Measurement, ...]


def ranked(measured: Iterable[Measurement], gaps: Gaps, *, higher: bool) -> Ranked:
    """Models by one number, equally good ones in their order; without those whose number is none.

    Args:
        higher: more is better.
    """
    known = [m for m in measured if not math.isnan(m.estimate.mean)]
    ordered = sorted(known, key=lambda m: -m.estimate.mean if higher else m.estimate.mean)
    alike = [m for m in ordered[1:] if not distinguishable(gaps.between(ordered[0], m.model))]
    return Ranked(tuple(ordered), tuple(alike))
