"""The loss of stretches of steps within a log, whose mean would hide a few steps that were far too large."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainer.monitor.curves import OVER_START
from trainer.objectives.base import START, TERM

FEWEST_OF_LOSS = 128  # groups whose mean loss says something, see `trainer.monitor.diagnosis.above_start`
MOST_KEPT = 256  # micro-batches, before processes add them up


@dataclass
class Highest:
    """The loss over what it was while the policy was the reference, of that stretch where it was highest.

    A stretch is of at least 128 groups, the next one begins behind it; what is left at the end counts for nothing.

    Attributes:
        ratio: None as long as there is no whole stretch whose start is above 0.
    """

    ratio: float | None = None
    _loss: float = 0.0
    _start: float = 0.0
    _groups: float = 0.0

    def add(self, loss: float, start: float, groups: float) -> None:
        """Take the next micro-batch: sums of the losses of its groups and of their starts, number of groups."""
        self._loss, self._start, self._groups = self._loss + loss, self._start + start, self._groups + groups
        if self._groups >= FEWEST_OF_LOSS:
            if self._start > 0:
                self.ratio = max(self.ratio or 0.0, self._loss / self._start)
            self._loss = self._start = self._groups = 0.0

    def logged(self) -> dict[str, float]:
        """The ratio under its name in logs; {} if there is none."""
        return {} if self.ratio is None else {OVER_START: self.ratio}


class Stretches:
    """`Highest` of the micro-batches since the last log, over all processes, from the sums that a trainer keeps.

    Every process has as many micro-batches. Of losses whose start is not known there is nothing.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._begin()

    def _begin(self) -> None:
        self._highest = Highest()
        self._sums: list[torch.Tensor] = []  # after each micro-batch, [3], of this process
        self._before: torch.Tensor | None = None  # those of all processes before them

    def mark(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Keep how far the sums are after a micro-batch.

        Args:
            sums: since the last log, name -> [2], sum and number of groups.
        """
        start = next((name for name in sums if name.startswith(START)), None)
        if start is not None:
            self._sums.append(torch.cat([sums[f"{TERM}{start.removeprefix(START)}"][:1], sums[start]]))
        if len(self._sums) == MOST_KEPT:
            self._add_up()

    def highest(self) -> dict[str, float]:
        """What a log says of them; then begin anew."""
        if self._sums:
            self._add_up()
        found = self._highest.logged()
        self._begin()
        return found

    def _add_up(self) -> None:
        sums = self._accelerator.reduce(torch.stack(self._sums), "sum")
        before = torch.zeros_like(sums[0]) if self._before is None else self._before
        for part in sums.diff(dim=0, prepend=before[None]).tolist():
            self._highest.add(*part)
        self._sums, self._before = [], sums[-1]
