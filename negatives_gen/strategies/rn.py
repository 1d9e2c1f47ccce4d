"""RN: resumed negatives, the sampler goes on from a share of the ground truth, so that they differ from it late."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

from data.command.errors import UserError
from data.command.options import option
from data.schema import Candidate, Group
from data.tokens import marks_of, text_behind
from negatives_gen.strategies.base import MAX_ROUNDS, Novelty, SampledStrategy, Tools, derive_seed


@dataclass(frozen=True)
class Options:
    """How much of the ground truth is kept, and how the rest is sampled."""

    rn_share: str = option(
        "0.1-0.9",
        "share of the ground truth's tokens that is kept: one for all, or a range to draw from",
        metavar="SHARE",
    )
    top_k: int = option(50, "sample among the k most likely tokens (0: all)")
    temperature: float = option(1.0, "sampling temperature")
    max_new_tokens: int = option(256, "length of a continuation in tokens, at most")

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        self.shares()
        if self.top_k < 0:
            raise UserError(f"--top_k must be 0 (all tokens) or more, got {self.top_k}.")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"--temperature must be above 0, got {self.temperature}: negatives are sampled.")
        if self.max_new_tokens < 1:
            raise UserError(f"--max_new_tokens must be at least 1, got {self.max_new_tokens}.")

    def shares(self) -> tuple[float, float]:
        """The least and the largest share. Raises UserError if they are none."""
        low, _, high = self.rn_share.partition("-")
        try:
            shares = float(low), float(high or low)
        except ValueError:
            shares = (0.0, 0.0)
        if not 0 < shares[0] <= shares[1] < 1:
            raise UserError(
                f"--rn_share must be a share between 0 and 1, or a range such as 0.2-0.8, got '{self.rn_share}'."
            )
        return shares


class Resumed(SampledStrategy):
    """Keeps the first tokens of the ground truth and samples what follows; draws that keep as many are one request.

    The end is never kept. `sampler_logp` is that of the tail given the tokens that are kept, which are not sampled.
    A negative costs its tail only. What is not new is drawn again, with other shares, for MAX_ROUNDS.
    """

    name = "rn"
    summary = "resumed: sampled from a share of the ground truth on"
    Options: ClassVar = Options

    async def sample(self, group: Group, settings: dict[str, Any], tools: Tools) -> str:
        novelty, count = Novelty(group, self.name), settings["count"]
        present = count - self.missing(group, settings)
        drawn = 0
        for round_number in range(MAX_ROUNDS):
            missing = self.missing(group, settings)
            if missing <= 0:
                return ""
            wanted = min(count, missing << round_number)
            kept = [self._kept(group, settings, tools.seed, present, draw) for draw in range(drawn, drawn + wanted)]
            drawn += wanted
            for candidate in await self._draw(group, Counter(kept), settings, tools, present, round_number):
                if self.missing(group, settings) > 0 and novelty.take(candidate):
                    group.negatives.append(candidate)
        missing = self.missing(group, settings)
        return f"{count - missing} of {count} distinct samples after {MAX_ROUNDS} draws" if missing > 0 else ""

    def _kept(self, group: Group, settings: dict[str, Any], seed: int, present: int, draw: int) -> int:
        """How many tokens a draw keeps: of a set that is extended, others than it has."""
        low, high = Options(rn_share=settings["rn_share"]).shares()
        share = random.Random(derive_seed(seed, self.name, group.id, present, draw)).uniform(low, high)
        tokens = len(group.response_ids) - 1
        return max(0, min(round(share * tokens), tokens - 1, settings["max_new_tokens"] - 1))

    async def _draw(
        self,
        group: Group,
        kept: Counter[int],
        settings: dict[str, Any],
        tools: Tools,
        present: int,
        round_number: int,
    ) -> list[Candidate]:
        """Candidates that keep so many tokens each, those that keep fewest first."""
        assert tools.sampler is not None
        ends = marks_of(tools.tokenizer).ends
        room = min(settings["max_new_tokens"], tools.context - len(group.prompt_ids))
        lengths = sorted(length for length in kept if length < room)
        drawn = await asyncio.gather(
            *(
                tools.sampler.sample(
                    [*group.prompt_ids, *group.response_ids[:length]],
                    n=kept[length],
                    top_k=settings["top_k"],
                    temperature=settings["temperature"],
                    max_tokens=room - length,
                    seed=derive_seed(tools.seed, self.name, group.id, present, round_number, length) >> 32,
                )
                for length in lengths
            )
        )
        candidates: list[Candidate] = []
        for length, samples in zip(lengths, drawn, strict=True):
            for sample in samples:
                ids = [*group.response_ids[:length], *sample.ids]
                candidates.append(
                    Candidate(
                        strategy=self.name,
                        ids=ids,
                        text=text_behind(tools.tokenizer, group.prompt_ids, ids, ends),
                        finish_reason=sample.finish_reason,
                        seed=sample.seed,
                        sampler_logp=sample.logp,
                    )
                )
        return candidates


STRATEGY = Resumed()
