"""RN: resumed negatives, the sampler goes on from a share of the ground truth, so that they differ from it late."""

import asyncio
import random
from dataclasses import dataclass
from typing import Any, ClassVar

from data.command.errors import UserError
from data.command.options import option
from data.schema import Candidate, Group
from data.tokens import marks_of, text_behind
from negatives_gen.strategies.base import SampledStrategy, SamplingOptions, Tools, derive_seed, longest


@dataclass(frozen=True)
class Options(SamplingOptions):
    """How much of the ground truth is kept, and how the rest is sampled."""

    rn_share: str = option(
        "0.1-0.9", "share of the ground truth's tokens that is kept: one, or a range to draw from", metavar="SHARE"
    )

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        super().check()
        shares(self.rn_share)


def shares(text: str) -> tuple[float, float]:
    """The least and the largest share that "0.5" or "0.2-0.8" names. Raises UserError if they are none."""
    low, dash, high = text.partition("-")
    try:
        found = float(low), float(high if dash else low)
    except ValueError:
        found = 0.0, 0.0
    if not 0 < found[0] <= found[1] < 1:
        raise UserError(f"--rn_share must be a share between 0 and 1, or a range such as 0.2-0.8, got '{text}'.")
    return found


class Resumed(SampledStrategy):
    """Keeps the first tokens of the ground truth and samples what follows, so that a negative costs its tail only.

    At least one token, and the end, are sampled. `sampler_logp` is that of the tail given the tokens that are kept,
    which are not sampled. Each draw is a request of its own, which has a seed of its own on every machine.
    """

    name = "rn"
    summary = "resumed: sampled from a share of the ground truth on"
    edits_truth = True
    reaches_more = True  # the first tokens are given, whatever their ranks
    Options: ClassVar = Options

    async def draw(
        self, group: Group, number: int, round_number: int, settings: dict[str, Any], tools: Tools
    ) -> list[Candidate]:
        assert tools.sampler is not None
        # As of AN: a set that is extended must not draw what it has drawn before.
        present = sum(c.strategy == self.name for c in group.negatives)
        seed = derive_seed(tools.seed, self.name, group.id, round_number, present)
        room = longest(group, settings, tools)
        lengths = self._kept(_whole(group, room), number, shares(settings["rn_share"]), seed)
        drawn = await asyncio.gather(
            *(
                tools.sampler.sample(
                    [*group.prompt_ids, *group.response_ids[:length]],
                    n=1,
                    top_k=settings["top_k"],
                    temperature=settings["temperature"],
                    max_tokens=room - length,
                    seed=derive_seed(seed, place) >> 32,
                )
                for place, length in enumerate(lengths)
            )
        )
        ends = marks_of(tools.tokenizer).ends
        candidates = list[Candidate]()
        for length, samples in zip(lengths, drawn, strict=True):
            for sample in samples:  # none of a prompt that the engine does not take
                ids = [*group.response_ids[:length], *sample.ids]
                text = text_behind(tools.tokenizer, group.prompt_ids, ids, ends)
                candidates.append(self.candidate(ids, text, sample))
        return candidates

    def given_tokens(self, group: Group, settings: dict[str, Any], tools: Tools) -> float:
        whole = _whole(group, longest(group, settings, tools))
        return min(sum(shares(settings["rn_share"])) / 2 * whole, whole - 1)

    def _kept(self, whole: int, number: int, bounds: tuple[float, float], seed: int) -> list[int]:
        """How many tokens of the ground truth each draw keeps, of the `whole` that it may."""
        generator = random.Random(seed)
        return [min(round(generator.uniform(*bounds) * whole), whole - 1) for _ in range(number)]


def _whole(group: Group, room: int) -> int:
    """Tokens of a ground truth before its end; of one that a continuation has no room for, what fits in `room`."""
    return max(1, min(len(group.response_ids) - 1, room))


STRATEGY = Resumed()
