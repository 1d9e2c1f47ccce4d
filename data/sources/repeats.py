"""Which rows of a source have the same prompt and response."""

from typing import Any


def repeated(ids: Any, may_repeat: Any, chosen: Any) -> dict[int, list[int]]:
    """The rows of each id that several of the chosen rows have, under the one that comes first among the chosen.

    Only ids that repeat take memory.

    Args:
        ids: [all rows, 2], the halves of each id.
        may_repeat: [all rows], see `data.sources.examples.Example.may_repeat`; others are the first of none.
        chosen: [rows], indices of rows in the order in which they are read.

    Returns:
        index -> indices, itself among them, in the order of the source.
    """
    import numpy as np

    rows = chosen[may_repeat[chosen]]
    _, which, counts = np.unique(ids[rows], axis=0, return_inverse=True, return_counts=True)
    which = which.ravel()
    several = counts[which] > 1
    rows, which = rows[several], which[several]
    by_id = np.argsort(which, kind="stable")
    of_each = np.split(rows[by_id], np.flatnonzero(np.diff(which[by_id])) + 1)
    return {int(same[0]): np.sort(same).tolist() for same in of_each if len(same)}
