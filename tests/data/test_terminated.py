"""data/command/terminated.py: SIGTERM is an orderly end, whoever handles it."""

import logging
import os
import signal
import sys
import threading

import pytest

from data.command.terminated import ENDING, ending_on_sigterm


def test_sigterm_ends_with_one_line_and_143(caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"), ending_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert [record.message for record in caplog.records] == [ENDING]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_that_ray_put_in_the_place_of_ours_ends_alike(caplog: pytest.LogCaptureFixture) -> None:
    """Ray's, of `ray.init`: `sys.exit(15)`."""
    before = signal.getsignal(signal.SIGTERM)

    def init_of_ray() -> None:
        with ending_on_sigterm():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit, match="143"):
        init_of_ray()
    assert [record.message for record in caplog.records] == [ENDING]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("code", [0, 2, 143, "text"])
def test_an_exit_without_sigterm_keeps_its_code(code: object, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended, ending_on_sigterm():
        sys.exit(code)  # type: ignore[arg-type]
    assert ended.value.code == code
    assert caplog.records == []


def test_nothing_is_handled_in_another_thread(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with ending_on_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
