"""Words that name decodings: how answers are made from a model's distribution."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from data.command.errors import UserError

TOP_K = re.compile(r"topk([0-9]{1,9})(?:-p([0-9]?\.?[0-9]{1,9}))?")
BEAM = re.compile(r"beam([0-9]{1,9})")


@dataclass(frozen=True)
class Decoding:
    """How an answer is made.

    Attributes:
        name: the canonical word: two words that mean the same have one name.
        kind: "greedy" takes the most likely token each time; "sample" draws at temperature 1; "beam" searches.
        top_k: of "sample": draw among so many most likely tokens, 0 for all.
        top_p: of "sample": of these, among the fewest that have this probability together.
        beams: of "beam": continuations kept at each step.
    """

    name: str
    kind: Literal["greedy", "sample", "beam"]
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1

    @property
    def cuts(self) -> bool:
        """Whether the decoding draws from less than the model's whole distribution."""
        return self.top_k > 0 or self.top_p < 1


def parse_decoding(word: str) -> Decoding:
    """Read "greedy", "sample", "topk50", "topk50-p0.7" or "beam4". Raises UserError for any other word."""
    if word == "greedy":
        return Decoding("greedy", "greedy")
    if word == "sample":
        return Decoding("sample", "sample")
    if (match := TOP_K.fullmatch(word)) and (top_k := int(match[1])) >= 1:
        share = Decimal(match[2] or 1)
        if 0 < share <= 1:
            cut = "" if share == 1 else f"-p{share.normalize():f}"
            return Decoding(f"topk{top_k}{cut}", "sample", top_k=top_k, top_p=float(share))
    if (match := BEAM.fullmatch(word)) and (beams := int(match[1])) >= 2:
        return Decoding(f"beam{beams}", "beam", beams=beams)
    raise UserError(
        f"unknown decoding '{word}'. Use greedy, sample, topkK (K at least 1), topkK-pP (P above 0, at most 1) or "
        "beamN (N at least 2), e.g. topk50-p0.7 or beam4."
    )
