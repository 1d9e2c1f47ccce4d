"""AN: autoregressive negatives, sampled from the reference model given the prefix (paper section 4.2)."""

from typing import Any, ClassVar

from data.schema import Candidate, Group
from negatives_gen.strategies.base import SampledStrategy, SamplingOptions, Tools, derive_seed, longest


class Autoregressive(SampledStrategy):
    """Samples what a group lacks in one request; what is not new is drawn again."""

    name = "an"
    summary = "autoregressive: sampled from the reference model, or --sampler"
    Options: ClassVar = SamplingOptions

    async def draw(
        self, group: Group, number: int, round_number: int, settings: dict[str, Any], tools: Tools
    ) -> list[Candidate]:
        assert tools.sampler is not None
        # How many it has already, in every round: a set that is extended must not draw what it has drawn before.
        present = sum(c.strategy == self.name for c in group.negatives)
        samples = await tools.sampler.sample(
            group.prompt_ids,
            n=number,
            top_k=settings["top_k"],
            temperature=settings["temperature"],
            max_tokens=longest(group, settings, tools),
            seed=derive_seed(tools.seed, self.name, group.id, round_number, present) >> 32,
        )
        return [self.candidate(sample.ids, sample.text, sample) for sample in samples]


STRATEGY = Autoregressive()
