"""The option --use: which negatives of a set, for every command that chooses among what a set holds.

Imports nothing heavy, so that `--help` answers at once; `trainer.groups.choice` reads what is given.
"""

from collections.abc import Sequence

METAVAR = "NAME=COUNT"


def use_help(*, drawn: str, signal: str) -> str:
    """What --help says of the option.

    Args:
        drawn: what :random draws, e.g. "a fresh draw each epoch".
        signal: the ranking signal that :similar is by.
    """
    return (
        f"which negatives, e.g. an=4,bn=3 for the first ones (default: all); of more, an=4:random for {drawn}, "
        "an=4:hard for the likeliest per token under the reference, an=4:similar for the most similar to the ground "
        f"truth, by {signal}, an=4:diverse for those with the fewest tokens in common"
    )


def in_one_word(use: Sequence[str] | None) -> str | None:
    """What was given as it is written in one word: "an=4,bn=3"; None: all negatives."""
    return None if use is None else ",".join(use)
