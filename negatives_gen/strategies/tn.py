"""TN: truncation negatives, the ground truth cut at a random position, with its end (paper section 4.2)."""

import random
from collections.abc import Iterator
from typing import Any

from data.schema import Candidate, Group
from data.tokens import text_behind
from negatives_gen.strategies.base import GroupStrategy, Tools, derive_seed


class Truncation(GroupStrategy):
    """Each candidate is a strict, non-empty prefix of the ground truth's tokens, then its end; no cut twice."""

    name = "tn"
    summary = "truncation: the ground truth cut at a random position"
    edits_truth = True
    scarce = "the response has no other cut with a new text"

    def candidates(self, group: Group, settings: dict[str, Any], tools: Tools) -> Iterator[Candidate]:
        *tokens, end = group.response_ids
        cuts = list(range(1, len(tokens)))
        random.Random(derive_seed(tools.seed, self.name, group.id)).shuffle(cuts)
        for cut in cuts:
            text = text_behind(tools.tokenizer, group.prompt_ids, tokens[:cut], ())
            yield Candidate(self.name, [*tokens[:cut], end], text)


STRATEGY = Truncation()
