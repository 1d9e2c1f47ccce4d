"""TN: truncation negatives, the ground truth cut at a random position, with its end (paper section 4.2)."""

import random
from collections.abc import Sequence
from typing import Any

from data.schema import Candidate, Group
from data.tokens import text_behind
from negatives_gen.strategies.base import Novelty, Strategy, Tools, derive_seed


class Truncation(Strategy):
    """Each candidate is a strict, non-empty prefix of the ground truth's tokens, then its end; no cut twice."""

    name = "tn"
    summary = "truncation: the ground truth cut at a random position"

    def add(
        self, groups: Sequence[Group], pool: Sequence[Group], settings: dict[str, Any], tools: Tools
    ) -> dict[str, str]:
        short: dict[str, str] = {}
        for group in groups:
            novelty = Novelty(group, self.name)
            *tokens, end = group.response_ids
            cuts = list(range(1, len(tokens)))
            random.Random(derive_seed(tools.seed, self.name, group.id)).shuffle(cuts)
            for cut in cuts:
                if self.missing(group, settings) <= 0:
                    break
                text = text_behind(tools.tokenizer, group.prompt_ids, tokens[:cut], ())
                candidate = Candidate(self.name, [*tokens[:cut], end], text)
                if novelty.take(candidate):
                    group.negatives.append(candidate)
            if missing := self.missing(group, settings):
                count = settings["count"]
                short[group.id] = f"{count - missing} of {count}: the response has {len(tokens)} tokens"
        return short


STRATEGY = Truncation()
