"""Beam search, as transformers' `generate(num_beams=N)` does it by default.

vLLM's own `LLM.beam_search` divides a continuation's log-probability by the tokens of prompt and continuation together
(vllm#2606), so that after a long prompt the shortest continuation wins, and it always goes on to the length limit.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class Beam(NamedTuple):
    """Token ids of a continuation and their log-probability in nats, summed."""

    ids: list[int]
    logp: float

    @property
    def score(self) -> float:
        """What continuations that have ended are compared by: nats per token."""
        return self.logp / len(self.ids)


class BeamSearch:
    """The search for the continuation of one prompt.

    Args:
        beams: continuations kept at each step.
        limit: tokens of a continuation, at most.
        ends: ids of the tokens that end it.

    Attributes:
        live: the continuations that can grow, the likeliest first; none when the search is over.
        ended: the best of those that cannot, the best first.
    """

    def __init__(self, beams: int, limit: int, ends: Collection[int]):
        self.beams, self.limit, self.ends = beams, limit, ends
        self.live, self.ended = [Beam([], 0.0)], list[Beam]()

    def step(self, next_logps: Sequence[Mapping[int, float]]) -> None:
        """Grow every live continuation by a token.

        Args:
            next_logps: for each of them, its `beams + len(ends)` most likely tokens and their log-probabilities.
        """
        grown = [
            Beam([*beam.ids, token], beam.logp + logp)
            for beam, options in zip(self.live, next_logps, strict=True)
            for token, logp in options.items()
        ]
        grown.sort(key=lambda beam: beam.logp, reverse=True)
        length = len(grown[0].ids)
        # One that ends counts only if it is among the likeliest of all.
        ending = [beam for beam in grown[: self.beams] if length == self.limit or beam.ids[-1] in self.ends]
        self.ended = sorted([*self.ended, *ending], key=lambda beam: beam.score, reverse=True)[: self.beams]
        self.live = [beam for beam in grown if beam.ids[-1] not in self.ends][: self.beams]
        # As transformers, which takes what a live continuation has per token for what it will have.
        hopeless = len(self.ended) == self.beams and self.live[0].score <= self.ended[-1].score
        if length == self.limit or hopeless:
            self.live = []
