"""Said once: a model that compares or scores texts reads only a part of long ones."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

log = logging.getLogger(__name__)


def uncut(tokenizer: Any, text: str, **options: Any) -> int:
    """How many tokens a text has, whatever the model reads of it; options are the tokenizer's."""
    return len(tokenizer(text, verbose=False, **options)["input_ids"])


class CutTexts:
    """Looks at the longest of some texts, by its characters, until it has found one that is cut.

    Args:
        what: the model in words, such as "embedder 'minilm'".
        longest: tokens of a text that it reads, at most; None: all.
    """

    def __init__(self, what: str, longest: int | None):
        self._what, self._longest = what, longest
        self._said = longest is None

    def look(self, texts: Sequence[str], tokens: Callable[[str], int], kept: str = "beginning") -> None:
        """Warn if the longest text is cut, unless that was said before.

        Args:
            tokens: how many a text has, uncut.
            kept: the part that the model reads, "beginning" or "end".
        """
        if self._said or not texts or self._longest is None:
            return
        count = tokens(max(texts, key=len))
        if count > self._longest:
            self._said = True
            log.warning(
                "%s reads %s tokens of a text at most: of longer ones, such as one of %s, only the %s counts",
                self._what, f"{self._longest:,}", f"{count:,}", kept,
            )  # fmt: skip
