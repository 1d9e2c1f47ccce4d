"""MN: meanfield negatives, a share of the ground truth's positions redrawn independently (paper section 4.2)."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from data.command.errors import UserError
from data.command.options import option
from data.schema import Candidate, Group
from data.tokens import marks_of, never_drawn, text_behind
from negatives_gen.strategies.base import Strategy, Tools, derive_seed

# Draws per group, however many candidates are asked for: a group that has too little variety for n has for n + m too.
MAX_DRAWS = 256
# Draws of a group that go through further rounds together. A pass holds these and nothing else, however many are
# wanted, so that the last digit of a probability does not depend on that; more would share the prefix among more.
TOGETHER = 4


@dataclass(frozen=True)
class Options:
    """How much of the ground truth is redrawn, and how often."""

    mn_share: float = option(0.15, "share of the ground truth's tokens that are redrawn")
    mn_rounds: int = option(1, "times that they are redrawn: from the second on given the result of the time before")

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        if not 0 < self.mn_share <= 1:
            raise UserError(f"--mn_share must be above 0 and at most 1, got {self.mn_share}.")
        if self.mn_rounds < 1:
            raise UserError(f"--mn_rounds must be at least 1, got {self.mn_rounds}.")


@dataclass
class Draw:
    """A candidate on its way through the rounds.

    Attributes:
        number: which of the MAX_DRAWS it is.
        chosen: positions that are redrawn, ascending.
        before: its history of the round before; at first the ground truth.
        ids: its tokens after the last round.
    """

    number: int
    chosen: list[int]
    before: list[int]
    ids: list[int]

    @property
    def unsettled(self) -> list[int]:
        """The chosen positions before which the last round changed anything: all others would be drawn as they were."""
        changed = [t for t in self.chosen if self.ids[t] != self.before[t]]
        return [t for t in self.chosen if changed and t > changed[0]]


class Meanfield(Strategy):
    """Redraws round(share) of the positions before the end, each from pi(. | x, y_<t) with the original history.

    At least one is redrawn. One teacher-forced pass gives every position's distribution; all draws of all candidates
    come out of it. A draw may return the token that it replaces, as in the paper, but no special token and no end: the
    continuation would end in its middle.

    Further rounds are Jacobi iterations: each draws the same positions by the same uniforms, given the candidate as the
    round before left it, with a teacher-forced pass over each candidate. After r rounds the first r of its positions
    are what drawing them one after another would give, so that rounds lead from MN to AN at these positions, and what
    no longer changes needs no further pass.
    """

    name = "mn"
    summary = "meanfield: a share of the ground truth's tokens redrawn in one teacher-forced pass"
    edits_truth = True
    Options: ClassVar = Options

    def settings(self, options: Any) -> dict[str, Any]:
        settings = super().settings(options)
        if settings["mn_rounds"] == 1:  # as sets say it that are older than further rounds
            del settings["mn_rounds"]
        return settings

    def add(
        self, groups: Sequence[Group], pool: Sequence[Group], settings: dict[str, Any], tools: Tools
    ) -> dict[str, str]:
        from trainer.scoring.continuations import Continuations

        assert tools.predictor is not None
        rounds = settings.get("mn_rounds", 1)
        marks = marks_of(tools.tokenizer)
        never = never_drawn(tools.tokenizer, marks)
        # The whole pool, so that its packing, and with it the last digit of a probability, is that of the first time.
        drawn = tools.predictor.draw(
            [Continuations(group.prompt_ids, [group.response_ids[:-1]]) for group in pool],
            [self._uniforms(group, tools.seed) for group in pool],
            never=never,
            on_pass=lambda done: tools.tell(done, len(pool), part="first round" if rounds > 1 else ""),
        )
        tokens_of = {group.id: tokens for group, tokens in zip(pool, drawn, strict=True)}
        short: dict[str, str] = {}
        for number, group in enumerate(groups, 1):
            draws = self._drawn(group, tokens_of[group.id], settings, tools.seed)
            if rounds > 1:
                draws = self._redrawn(group, draws, rounds, tools, never)
            candidates = (
                Candidate(self.name, draw.ids, text_behind(tools.tokenizer, group.prompt_ids, draw.ids, marks.ends))
                for draw in draws
            )
            if missing := self.fill(group, candidates, settings):
                count = settings["count"]
                short[group.id] = f"{count - missing} of {count} distinct candidates after {MAX_DRAWS} draws"
            if rounds > 1:
                tools.tell(number, len(groups), part="further rounds")
        return short

    def _drawn(self, group: Group, tokens: np.ndarray, settings: dict[str, Any], seed: int) -> Iterator[Draw]:
        """All draws after the first round.

        Args:
            tokens: [positions before the end, MAX_DRAWS], drawn given the ground truth.
        """
        length = len(group.response_ids) - 1
        redrawn = max(1, round(settings["mn_share"] * length))
        for number in range(tokens.shape[1]):
            chosen = random.Random(derive_seed(seed, self.name, group.id, number)).sample(range(length), redrawn)
            ids = list(group.response_ids)
            for position in chosen:
                ids[position] = int(tokens[position, number])
            yield Draw(number, sorted(chosen), group.response_ids, ids)

    def _redrawn(
        self, group: Group, draws: Iterator[Draw], rounds: int, tools: Tools, never: Sequence[int]
    ) -> Iterator[Draw]:
        """All draws after all rounds, TOGETHER at a time, and no more than are asked for."""
        uniforms = self._uniforms(group, tools.seed)
        for together in iter(lambda: list(islice(draws, TOGETHER)), []):
            for _ in range(rounds - 1):
                if not (changing := [draw for draw in together if draw.unsettled]):
                    break
                self._redraw(group, changing, uniforms, tools.predictor, never)
            yield from together

    def _redraw(
        self, group: Group, draws: Sequence[Draw], uniforms: np.ndarray, predictor: Any, never: Sequence[int]
    ) -> None:
        """Another round of some draws, in one pass."""
        from trainer.scoring.continuations import Continuations

        (tokens,) = predictor.draw(
            [Continuations(group.prompt_ids, [draw.ids[:-1] for draw in draws])],
            [np.concatenate([uniforms[:, draw.number, None] for draw in draws])],
            never=never,
        )
        for draw, drawn in zip(draws, tokens.reshape(len(draws), -1), strict=True):
            redrawn = {t: int(drawn[t]) for t in draw.unsettled}
            draw.before, draw.ids = draw.ids, [redrawn.get(t, token) for t, token in enumerate(draw.ids)]

    def _uniforms(self, group: Group, seed: int) -> np.ndarray:
        """[positions before the end, MAX_DRAWS] in [0, 1)."""
        generator = np.random.Generator(np.random.PCG64(derive_seed(seed, self.name, group.id)))
        return generator.random((len(group.response_ids) - 1, MAX_DRAWS))


STRATEGY = Meanfield()
