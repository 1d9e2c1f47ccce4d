"""Rounds as points of a curve: models that are called round-0, round-1, ..."""

import re
from collections.abc import Sequence

from evaluation.metrics.base import TRUTH
from evaluation.metrics.statistics import Measurement

ROUND = re.compile(r"round-(\d{1,6})")


def measured_rounds(measurements: Sequence[Measurement]) -> list[tuple[int, Measurement]]:
    """The rounds' numbers with what was measured of their models, by rising number; win rates against the truth."""
    named = [(ROUND.fullmatch(m.model), m) for m in measurements if m.against in ("", TRUTH)]
    return sorted(((int(name[1]), m) for name, m in named if name), key=lambda point: point[0])
