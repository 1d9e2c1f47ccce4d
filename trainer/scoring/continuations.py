"""What is scored: the continuations of one prefix. Without torch, which who only passes them on need not import."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Tokens = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Continuations:
    """A prefix and the continuations to score after it, as token ids (lists or arrays); none of them is empty."""

    prefix: Tokens
    continuations: Sequence[Tokens]

    @property
    def packed_length(self) -> int:
        """Tokens that the group takes in a packed row."""
        return len(self.prefix) - 1 + sum(len(c) for c in self.continuations)

    @property
    def longest(self) -> int:
        """Tokens of the prefix with the longest continuation: the width of the padded layout."""
        return len(self.prefix) + max(len(c) for c in self.continuations)
