"""Which rows are held out: a share of them by their content, or those that the source itself keeps apart.

Rows are ordered by a hash of their content; the last ones are held out, by default the half of them as in the paper.
A stream has no middle that could be known beforehand: there each row's hash decides by itself.
"""

import hashlib
from fractions import Fraction
from typing import Any

from data.command.errors import UserError

SPLITS = ("train", "test", "all")
SPLIT_SEED = 0
TEST_SHARE = 0.5  # the paper's


def split_key(identifier: str) -> bytes:
    """What orders the rows: 16 bytes of a hash of the id."""
    return hashlib.sha256(f"{SPLIT_SEED}:{identifier}".encode()).digest()[:16]


def num_train(count: int, test_share: float) -> int:
    """How many of so many rows are not held out, rounded down."""
    return int(count * (1 - Fraction(str(test_share))))


def is_train(identifier: str, test_share: float) -> bool:
    """Whether a row of a stream is not held out: at a half, its hash's first bit says so."""
    return Fraction(int.from_bytes(split_key(identifier)[:8], "big"), 1 << 64) < 1 - Fraction(str(test_share))


def in_turns(num_train: int, num_test: int) -> Any:
    """The order in which the rows of both halves take turns, so that any beginning has them in their proportion.

    Returns:
        [num_train + num_test] places among the rows of train, followed by those of test. Of two halves: the first of
        train, the first of test, the second of train, ...; an odd one comes last.
    """
    import numpy as np

    steps = num_train if num_test == num_train + 1 else num_test
    when = np.concatenate([np.arange(num_train) / max(1, num_train), np.arange(num_test) / max(1, steps)])
    return np.argsort(when, kind="stable")


def check_held_out(share: float | None, dataset: str | None) -> None:
    """Raise UserError for a share that leaves nothing to train on or is none, or that stands beside another source."""
    if share is not None and dataset is not None:
        raise UserError("give either --test_share or --test_dataset, not both: each says which rows are held out.")
    if share is not None and not 0 <= share < 1:
        raise UserError(f"--test_share must be from 0 to below 1, got {share:g}.")


def require_split(split: str) -> None:
    """Raise UserError for a half that there is not."""
    if split not in SPLITS:
        raise UserError(
            f"unknown split '{split}'. Use one of {', '.join(SPLITS)}. A split of the data set's own is written behind "
            f"its name: --dataset NAME:{split}."
        )
