"""How many negatives of which strategy: `an=11`, `an=4,bn=3`."""

from collections.abc import Iterable

from data.command.errors import UserError, did_you_mean


def parse_counts(text: str, option: str, known: Iterable[str] | None = None) -> dict[str, int]:
    """Parse e.g. "an=4,bn=3" into {"an": 4, "bn": 3}.

    Args:
        option: name of the option, for messages.
        known: the strategies there are; without it any name will do.

    Raises:
        UserError: unknown or repeated strategy, or a count that is no positive whole number.
    """
    counts: dict[str, int] = {}
    names = None if known is None else list(known)
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if names is not None and name not in names:
            raise UserError(
                f"{option} '{text}' names unknown strategy '{name}'.{did_you_mean(name, names)} "
                f"Known: {', '.join(names)}; write e.g. {names[0]}=3."
            )
        if not equals or not (number.isascii() and number.isdigit()) or int(number) < 1:
            raise UserError(f"{option} '{text}': '{part.strip()}' needs a count of at least 1; write e.g. {name}=11.")
        if name in counts:
            raise UserError(f"{option} '{text}' names strategy '{name}' twice.")
        counts[name] = int(number)
    return counts


def format_counts(counts: dict[str, int]) -> str:
    """The inverse of `parse_counts`."""
    return ",".join(f"{name}={count}" for name, count in counts.items())
