"""data/command/deadline.py: what runs without end is ended, and nobody else's alarm is."""

import signal
import threading
import time
from pathlib import Path

import pytest

from data import tokens
from data.command.deadline import within
from data.command.errors import UserError
from data.models import load_tokenizer
from data.tokens import marks_of

ENDLESS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


def spin(seconds: float) -> None:
    """Work that swallows every exception, as a program of others may."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            sum(range(1000))
        except Exception:
            continue


def test_a_block_that_takes_too_long_is_ended() -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^this does not end within 0\.2 s\. Correct it\.$"), within(0.2, "this"):
        spin(20)
    assert time.monotonic() - started < 10
    with within(20, "this"):
        spin(0)


def test_an_alarm_that_was_set_before_goes_off_when_it_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    rang: list[float] = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rang.append(time.monotonic()))
    before = signal.setitimer(signal.ITIMER_REAL, 0.4)
    started = time.monotonic()
    try:
        with within(20, "this"):
            spin(0.1)
        spin(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)
    assert len(rang) == 1
    assert rang[0] - started >= 0.4


def test_a_bound_of_time_does_not_hold_in_another_thread() -> None:
    done: list[bool] = []

    def work() -> None:
        with within(0.05, "this"):
            spin(0.2)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_a_chat_template_without_end_is_one_line(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LONGEST_RENDERING", 0.3)
    tokenizer = load_tokenizer(str(reference))
    tokenizer.chat_template = ENDLESS
    with pytest.raises(UserError, match=r"^the chat template of '.*' does not end within 0\.3 s\. Correct it\.$"):
        marks_of(tokenizer)
