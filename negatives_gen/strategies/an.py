"""AN: autoregressive negatives, sampled from the reference model given the prefix (paper section 4.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data.command.errors import UserError
from data.command.options import option
from data.schema import Candidate, Group
from negatives_gen.strategies.base import MAX_ROUNDS, SAMPLE, Novelty, Strategy, Tools, derive_seed


@dataclass(frozen=True)
class Options:
    """How continuations are sampled."""

    top_k: int = option(50, "sample among the k most likely tokens (0: all)")
    temperature: float = option(1.0, "sampling temperature")
    max_new_tokens: int = option(256, "length of a continuation in tokens, at most")

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        if self.top_k < 0:
            raise UserError(f"--top_k must be 0 (all tokens) or more, got {self.top_k}.")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"--temperature must be above 0, got {self.temperature}: negatives are sampled.")
        if self.max_new_tokens < 1:
            raise UserError(f"--max_new_tokens must be at least 1, got {self.max_new_tokens}.")


class Autoregressive(Strategy):
    """Samples `count` continuations per prefix in one request; what is not new is drawn again, for MAX_ROUNDS."""

    name = "an"
    summary = "autoregressive: sampled from the reference model"
    stage = SAMPLE
    Options: ClassVar = Options

    def add(
        self, groups: Sequence[Group], pool: Sequence[Group], settings: dict[str, Any], tools: Tools
    ) -> dict[str, str]:
        assert tools.sampler is not None
        novelty = [Novelty(group, self.name) for group in groups]
        for round_number in range(MAX_ROUNDS):
            wanting = [i for i, group in enumerate(groups) if self.missing(group, settings) > 0]
            if not wanting:
                break
            drawn = tools.sampler.sample(
                [groups[i].prompt_ids for i in wanting],
                # What a group lacks; if that drew too few new texts, ever more: the prompt is computed once anyway.
                n=min(settings["count"], max(self.missing(groups[i], settings) for i in wanting) << round_number),
                top_k=settings["top_k"],
                temperature=settings["temperature"],
                max_tokens=[longest(groups[i], settings, tools) for i in wanting],
                seeds=[self._request_seed(tools.seed, groups[i], round_number) for i in wanting],
            )
            for i, samples in zip(wanting, drawn, strict=True):
                for sample in samples:
                    candidate = Candidate(
                        strategy=self.name,
                        ids=sample.ids,
                        text=sample.text,
                        finish_reason=sample.finish_reason,
                        seed=sample.seed,
                        sampler_logp=sample.logp,
                    )
                    if self.missing(groups[i], settings) > 0 and novelty[i].take(candidate):
                        groups[i].negatives.append(candidate)
        count = settings["count"]
        return {
            group.id: f"{count - missing} of {count} distinct samples after {MAX_ROUNDS} draws"
            for group in groups
            if (missing := self.missing(group, settings)) > 0
        }

    def supports(self, group: Group, rank: int | None, settings: dict[str, Any], tools: Tools) -> bool | None:
        # The end is sampled like any token and counts towards the limit: a truth of just that length is reached.
        if len(group.response_ids) > longest(group, settings, tools):
            return False
        if settings["top_k"] == 0:
            return True
        # As many as k may be likelier or equal: what ties with the k-th is sampled too.
        return None if rank is None else rank < settings["top_k"]

    def _request_seed(self, seed: int, group: Group, round_number: int) -> int:
        # How many it has already: a set that is extended must not draw the samples that it has.
        present = sum(c.strategy == self.name for c in group.negatives) if round_number == 0 else 0
        return derive_seed(seed, self.name, group.id, round_number, present) >> 32


def longest(group: Group, settings: dict[str, Any], tools: Tools) -> int:
    """Tokens of a group's longest continuation, its end included."""
    return min(settings["max_new_tokens"], tools.context - len(group.prompt_ids))


STRATEGY = Autoregressive()
