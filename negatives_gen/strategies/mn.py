"""MN: meanfield negatives, a share of the ground truth's positions redrawn independently (paper section 4.2)."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from data.command.errors import UserError
from data.command.options import option
from data.schema import Candidate, Group
from data.tokens import Marks, marks_of, never_drawn, text_behind
from negatives_gen.strategies.base import Strategy, Tools, derive_seed

# Draws per group, however many candidates are asked for: a group that has too little variety for n has for n + m too.
MAX_DRAWS = 256


@dataclass(frozen=True)
class Options:
    """How much of the ground truth is redrawn."""

    mn_share: float = option(0.15, "share of the ground truth's tokens that are redrawn")

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        if not 0 < self.mn_share <= 1:
            raise UserError(f"--mn_share must be above 0 and at most 1, got {self.mn_share}.")


class Meanfield(Strategy):
    """Redraws round(share) of the positions before the end, each from pi(. | x, y_<t) with the original history.

    At least one is redrawn. One teacher-forced pass gives every position's distribution; all draws of all candidates
    come out of it. A draw may return the token that it replaces, as in the paper, but no special token and no end: the
    continuation would end in its middle.
    """

    name = "mn"
    summary = "meanfield: a share of the ground truth's tokens redrawn in one teacher-forced pass"
    Options: ClassVar = Options

    def add(
        self, groups: Sequence[Group], pool: Sequence[Group], settings: dict[str, Any], tools: Tools
    ) -> dict[str, str]:
        from trainer.scoring.continuations import Continuations

        assert tools.predictor is not None
        marks = marks_of(tools.tokenizer)
        # The whole pool, so that its packing, and with it the last digit of a probability, is that of the first time.
        drawn = tools.predictor.draw(
            [Continuations(group.prompt_ids, [group.response_ids[:-1]]) for group in pool],
            [self._uniforms(group, tools.seed) for group in pool],
            never=never_drawn(tools.tokenizer, marks),
        )
        tokens_of = {group.id: tokens for group, tokens in zip(pool, drawn, strict=True)}
        short: dict[str, str] = {}
        for group in groups:
            redrawn = self._redrawn(group, tokens_of[group.id], settings, tools, marks)
            if missing := self.fill(group, redrawn, settings):
                count = settings["count"]
                short[group.id] = f"{count - missing} of {count} distinct candidates after {MAX_DRAWS} draws"
        return short

    def _redrawn(
        self, group: Group, tokens: np.ndarray, settings: dict[str, Any], tools: Tools, marks: Marks
    ) -> Iterator[Candidate]:
        """A candidate of each draw."""
        length = len(group.response_ids) - 1
        redrawn = max(1, round(settings["mn_share"] * length))
        for draw in range(tokens.shape[1]):
            chosen = random.Random(derive_seed(tools.seed, self.name, group.id, draw)).sample(range(length), redrawn)
            ids = list(group.response_ids)
            for position in chosen:
                ids[position] = int(tokens[position, draw])
            yield Candidate(self.name, ids, text_behind(tools.tokenizer, group.prompt_ids, ids, marks.ends))

    def _uniforms(self, group: Group, seed: int) -> np.ndarray:
        """[positions before the end, MAX_DRAWS] in [0, 1)."""
        generator = np.random.Generator(np.random.PCG64(derive_seed(seed, self.name, group.id)))
        return generator.random((len(group.response_ids) - 1, MAX_DRAWS))


STRATEGY = Meanfield()
