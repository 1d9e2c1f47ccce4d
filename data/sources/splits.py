"""Which rows are held out: a share of them by their content, or those that the source itself keeps apart.

Rows are ordered by a hash of their content; the last ones are held out, by default the half of them as in the paper.
All rows of a prompt are on one side. A stream has no middle that could be known beforehand, nor the other rows of a
prompt: there each row's hash decides by itself.
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


def in_order(keys: Any, of_part: Any = 0) -> Any:
    """[rows], places of rows in the order of their keys, part after part; equal ones stay in the order of the source.

    Args:
        keys: [rows, 2], the halves of each row's `split_key`.
        of_part: [rows], the number of the part that it belongs to, or one for all.
    """
    import numpy as np

    high, low = keys.T
    return np.lexsort((low, high, np.broadcast_to(of_part, high.shape)))


def rows_of_train(ids: Any, keys: Any, prompts: Any, test_share: float) -> Any:
    """Which rows are not held out: about the share that is left, exactly so where no prompt has several rows.

    A prompt's place in the order is that of its row with the smallest id: by chance, however many rows it has, and for
    a prompt of one row that row's own. The border is the one between two prompts that is nearest to the share.

    Args:
        ids: [rows, 2], the halves of each row's id.
        keys: [rows, 2], see `in_order`.
        prompts: [rows], alike for rows of the same prompt.

    Returns:
        [rows] bool.
    """
    import numpy as np

    by_prompt = np.lexsort((ids[:, 1], ids[:, 0], prompts))
    sorted_prompts = prompts[by_prompt]
    starts = np.flatnonzero(np.append(True, sorted_prompts[1:] != sorted_prompts[:-1])[: len(prompts)])
    sizes = np.diff(np.append(starts, len(prompts)))
    order = in_order(keys[by_prompt[starts]])
    borders = np.append(0, np.cumsum(sizes[order]))
    kept = np.zeros(len(starts), bool)
    kept[order[: np.argmin(np.abs(borders - num_train(len(prompts), test_share)))]] = True
    found = np.zeros(len(prompts), bool)
    found[by_prompt] = np.repeat(kept, sizes)
    return found


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
