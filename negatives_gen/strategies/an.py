"""AN: autoregressive negatives, sampled from the reference model given the prefix (paper section 4.2)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from data.command.errors import UserError
from data.command.options import option
from data.schema import Candidate, Group
from negatives_gen.strategies.base import MAX_ROUNDS, Novelty, SampledStrategy, Tools, derive_seed


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


class Autoregressive(SampledStrategy):
    """Samples `count` continuations per prefix in one request; what is not new is drawn again, for MAX_ROUNDS."""

    name = "an"
    summary = "autoregressive: sampled from the reference model"
    Options: ClassVar = Options

    async def sample(self, group: Group, settings: dict[str, Any], tools: Tools) -> str:
        assert tools.sampler is not None
        novelty, count = Novelty(group, self.name), settings["count"]
        for round_number in range(MAX_ROUNDS):
            missing = self.missing(group, settings)
            if missing <= 0:
                return ""
            samples = await tools.sampler.sample(
                group.prompt_ids,
                # What it lacks; if that drew too few new texts, ever more: the prompt is computed once anyway.
                n=min(count, missing << round_number),
                top_k=settings["top_k"],
                temperature=settings["temperature"],
                max_tokens=min(settings["max_new_tokens"], tools.context - len(group.prompt_ids)),
                seed=self._request_seed(tools.seed, group, round_number),
            )
            for sample in samples:
                candidate = Candidate(
                    strategy=self.name,
                    ids=sample.ids,
                    text=sample.text,
                    finish_reason=sample.finish_reason,
                    seed=sample.seed,
                    sampler_logp=sample.logp,
                )
                if self.missing(group, settings) > 0 and novelty.take(candidate):
                    group.negatives.append(candidate)
        missing = self.missing(group, settings)
        return f"{count - missing} of {count} distinct samples after {MAX_ROUNDS} draws" if missing > 0 else ""

    def _request_seed(self, seed: int, group: Group, round_number: int) -> int:
        # How many it has already: a set that is extended must not draw the samples that it has.
        present = sum(c.strategy == self.name for c in group.negatives) if round_number == 0 else 0
        return derive_seed(seed, self.name, group.id, round_number, present) >> 32


STRATEGY = Autoregressive()
