"""The loss of stretches of steps within a log, whose mean would hide a few steps that were far too large."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from trainer.monitor.curves import OVER_START
from trainer.objectives.base import START, TERM

FEWEST_OF_LOSS = 128  # groups whose mean loss says something, see `trainer.monitor.diagnosis.above_start`


def highest_over_start(micro_batches: Iterable[tuple[float, float, float]]) -> float | None:
    """The loss over what it was while the policy was the reference, of that stretch where it was highest.

    Stretches of at least 128 groups follow each other; what is left behind the last one is not looked at.

    Args:
        micro_batches: of each, in order: sum of the losses of its groups, of their starts, number of groups.

    Returns:
        None of fewer groups, and where a stretch's start is 0.
    """
    found = []
    loss = start = groups = 0.0
    for more in micro_batches:
        loss, start, groups = loss + more[0], start + more[1], groups + more[2]
        if groups >= FEWEST_OF_LOSS:
            if not start > 0:
                return None
            found.append(loss / start)
            loss = start = groups = 0.0
    return max(found, default=None)


class Stretches:
    """What `highest_over_start` needs of the micro-batches since the last log; nothing of losses of unknown start."""

    def __init__(self) -> None:
        self._sums: list[torch.Tensor] = []  # after each, [3], of this process

    def mark(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Keep how far the sums are after a micro-batch.

        Args:
            sums: since the last log, name -> [2], sum and number of groups.
        """
        start = next((name for name in sums if name.startswith(START)), None)
        if start is not None:
            self._sums.append(torch.cat([sums[f"{TERM}{start.removeprefix(START)}"][:1], sums[start]]))

    def highest(self, accelerator: Any) -> dict[str, float]:
        """The ratio over all processes under its name in logs, {} if there is none; then begin anew."""
        if not self._sums:
            return {}
        sums = accelerator.reduce(torch.stack(self._sums), "sum")
        self._sums = []
        highest = highest_over_start(sums.diff(dim=0, prepend=sums.new_zeros(1, 3)).tolist())
        return {} if highest is None else {OVER_START: highest}
