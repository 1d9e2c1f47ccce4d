"""`make bench BENCH_SMALL=1`: each benchmark with as little as shows that it runs; its figures then mean nothing."""

import os
from typing import TypeVar

T = TypeVar("T")


def extent(whole: T, small: T) -> T:
    """The extent of a benchmark that is measured, or of one that is only run. Processes of its own inherit which."""
    return small if os.environ.get("BENCH_SMALL", "0") not in ("", "0") else whole
