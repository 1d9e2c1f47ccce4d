"""`given`: the scores that the rows of the data source give to the responses that they list."""

from collections.abc import Sequence
from typing import Any

from data.schema import Group
from data.sources.row_reader import SCORES
from negatives_gen.signals.base import Reference, Signal


class GivenScore(Signal):
    """The score of a candidate of strategy `given`, as the row has it (less its sign where less is better)."""

    name = "given"
    summary = "scores that the rows list (--columns scores=...)"
    reads = (SCORES,)
    only_of = ("given",)

    def __init__(self, options: Any, reference: Reference):
        pass

    @classmethod
    def identity(cls, options: Any, reference: Reference) -> dict[str, Any]:
        return {}

    def add(self, groups: Sequence[Group]) -> None:
        for group in groups:
            # The first one of some ids, as the strategy takes it.
            scores = {tuple(other.ids): other.score for other in reversed(group.alternatives or [])}
            for candidate in group.negatives:
                score = scores.get(tuple(candidate.ids))
                if self.name not in candidate.similarity and score is not None:
                    candidate.similarity[self.name] = score


SIGNAL = GivenScore
