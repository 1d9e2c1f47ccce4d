"""When a judge asks again: as late as the server says, and not all at once."""

import time
from email.utils import formatdate
from pathlib import Path

import pytest

from data.chat.client import asked_pause
from tests.support.chat_server import ChatAPIStub
from tests.support.judged import FAULTS, judge_by, unequal

pytestmark = [pytest.mark.seconds, pytest.mark.usefixtures("api_environment")]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "2"}, 2),
        ({"retry-after": "1800"}, 1800),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after": "99999999"}, 3600),
        ({"retry-after": "inf"}, 3600),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "Wed, 21 Oct 9999 07:28:00 GMT"}, 3600),
    ],
)
def test_servers_say_how_long_to_wait(headers: dict[str, str], seconds: float) -> None:
    assert asked_pause(headers) == seconds


def test_servers_say_until_when_to_wait() -> None:
    assert 18 <= asked_pause({"retry-after": formatdate(time.time() + 20, usegmt=True)}) <= 20


def test_nobody_asks_before_the_server_wants_to_be_asked(server: ChatAPIStub, tmp_path: Path) -> None:
    """One of four requests under way is told to wait; the other three are let alone, and nothing new is sent."""
    server.seconds = 0.05
    server.faults = [(429, {"Retry-After": "0.6"}, "")]
    judge_by(server, tmp_path, concurrency=4).judge(unequal(9))
    assert len(server.requests) == 13
    assert sum(t - server.times[0] < 0.6 for t in server.times) <= 4


@pytest.mark.parametrize("told", [16, 1])
def test_requests_that_were_told_to_wait_do_not_come_back_together(
    server: ChatAPIStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: int
) -> None:
    """Requests that wait because another was told to do not come back together either."""
    monkeypatch.setattr("data.chat.client.FIRST_PAUSE", 0.5)
    monkeypatch.setattr("data.chat.client.LONGEST_PAUSE", 0.5)
    server.seconds = 0.2
    server.faults = [(429, {"Retry-After": "0.6"}, "")] * told
    judge_by(server, tmp_path).judge(unequal(24))
    assert len(server.requests) == 32 + told
    back = server.times[16:32]
    assert min(back) - server.times[told - 1] >= 0.6
    assert max(back) - min(back) > 0.15


def test_pauses_are_drawn_from_a_doubling_range(
    server: ChatAPIStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = []
    monkeypatch.setattr("data.chat.client.random.uniform", lambda *bounds: ranges.append(bounds) or 0.0)
    server.faults = [FAULTS[3]] * 6
    judge_by(server, tmp_path, concurrency=1).judge(unequal(1))
    assert ranges == [(0, 0.005), (0, 0.01), (0, 0.02), (0, 0.04), (0, 0.05), (0, 0.05)]
