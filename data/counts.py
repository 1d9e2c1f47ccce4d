"""How many negatives of which strategy: `an=11`, `an=4,bn=3`, `my.module:NAME=3`."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.command.errors import UserError


def parse_counts(
    chosen: str | Sequence[str], option: str, known_as: Callable[[str], str] | None = None
) -> dict[str, int]:
    """Parse e.g. "an=4,bn=3", or ["an=4", "bn=3"], into {"an": 4, "bn": 3}.

    Args:
        option: name of the option, for messages.
        known_as: what a strategy is called in a set by the name that the user wrote, which may be the import path of
            one from outside; raises UserError if there is none. Without it any name will do.

    Raises:
        UserError: unknown or repeated strategy, or a count that is no positive whole number.
    """
    counts: dict[str, int] = {}
    text = chosen if isinstance(chosen, str) else ",".join(chosen)
    for part in text.split(","):
        written, equals, number = (piece.strip() for piece in part.partition("="))
        name = written if known_as is None else known_as(written)
        if not equals or not re.fullmatch("0*[1-9][0-9]{0,8}", number):
            raise UserError(
                f"{option} '{text}': '{part.strip()}' needs a whole number of at least 1; write e.g. {written}=11."
            )
        if name in counts:
            raise UserError(f"{option} '{text}' names strategy '{name}' twice.")
        counts[name] = int(number)
    return counts


def least_of(settings: Mapping[str, Any]) -> int:
    """How few negatives of a strategy a group of a set may have, by the strategy's settings in the manifest."""
    return settings.get("least", settings["count"])


def format_counts(counts: dict[str, int]) -> str:
    """Counts as text, the inverse of `parse_counts`: `an=4,bn=3`."""
    return ",".join(f"{name}={count}" for name, count in counts.items())
