"""An event loop in which nobody waits: where nothing is ready, its clock goes on to the next timer."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Selector(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "all wait for what no timer brings"
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs coroutines that wait for timers and for each other alone, in the same time on any machine."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds since the loop was made, as its timers have passed them."""
        return self._virtual.now


def run(loop: VirtualTimeLoop, work: Coroutine[Any, Any, Any]) -> Any:
    """What the work returns, after which the loop is closed."""
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
