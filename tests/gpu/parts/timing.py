"""Time on a device that works on after a call has returned."""

import statistics
import time
from collections.abc import Callable

import torch

WARM_UP, MEASURED = 2, 5


def finished(device: str) -> float:
    """`time.perf_counter()` once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def median_seconds(
    call: Callable[[], object], device: str, after_warm_up: Callable[[], object] = lambda: None
) -> float:
    """Seconds of a call: the median of five after two to warm up, and to compile."""
    for _ in range(WARM_UP):
        call()
    after_warm_up()
    seconds = []
    for _ in range(MEASURED):
        started = finished(device)
        call()
        seconds.append(finished(device) - started)
    return statistics.median(seconds)
