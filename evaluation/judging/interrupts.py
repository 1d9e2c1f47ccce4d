"""SIGINT and SIGTERM while requests are under way: what is paid for is waited for and kept."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopping_at_signals(stop: Callable[[BaseException], None]) -> Iterator[None]:
    """Inside, in a coroutine, SIGINT and SIGTERM call `stop` with what is to be raised when all is kept.

    That is KeyboardInterrupt, or SystemExit with 143. A SIGINT after either raises KeyboardInterrupt at once. Signals
    reach the main thread only; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    received: BaseException | None = None

    def receive(number: int, _: FrameType | None) -> None:
        nonlocal received
        if received is None:
            received = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
            loop.call_soon_threadsafe(stop, received)  # threadsafe: it wakes the loop, which may wait for the network
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not from Python
    if received is not None:  # too late to stop anything
        raise received
