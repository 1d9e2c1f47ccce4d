"""A bound of time for what others wrote and we run, such as a chat template, which is a program."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from data.command.errors import UserError
from data.command.wording import duration


class _TooLong(BaseException):
    """The end of a block's time: no `Exception`, which the code that is bounded may catch."""


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """End the block if it takes longer. Another thread than the main one has no bound: signals reach only that one.

    Args:
        what: begins the sentence "... does not end within 30 s".

    Raises:
        UserError: the block took longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    handler, started = signal.signal(signal.SIGALRM, end), time.monotonic()
    earlier, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TooLong:
        raise UserError(f"{what} does not end within {duration(seconds)}. Correct it.") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if earlier:  # somebody else's alarm goes on
            signal.setitimer(signal.ITIMER_REAL, max(0.001, earlier - (time.monotonic() - started)))
