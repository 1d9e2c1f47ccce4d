"""When a judge asks again: as late as the server says, and not all at once."""

import asyncio
import random
import time
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from data.chat.client import Answer, ChatAPI, asked_pause
from tests.support.chat_server import ChatAPIStub
from tests.support.judged import FAULTS, judge_by, unequal
from tests.support.virtual_time import VirtualTimeLoop, run

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


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("told", [16, 1])
def test_requests_that_were_told_to_wait_do_not_come_back_together(
    monkeypatch: pytest.MonkeyPatch, told: int, seed: int
) -> None:
    """Requests that wait because another was told to do not come back together either. In virtual time."""
    loop, times = VirtualTimeLoop(), []
    monkeypatch.setattr("data.chat.client.time", SimpleNamespace(monotonic=loop.time, time=time.time))
    monkeypatch.setattr("data.chat.client.random", random.Random(seed))
    monkeypatch.setattr("data.chat.client.FIRST_PAUSE", 0.5)
    monkeypatch.setattr("data.chat.client.LONGEST_PAUSE", 0.5)
    refusal: Any = SimpleNamespace(status_code=429, headers={"retry-after": "0.6"}, request=None)

    async def send_stub(*_: Any) -> Answer:
        times.append(loop.time())
        is_refused = len(times) <= told
        await asyncio.sleep(0.01 if is_refused else 0.2)
        if is_refused:
            raise openai.RateLimitError("slow down", response=refusal, body=None)
        return Answer("A", "stop")

    async def ask() -> list[Answer]:
        sampling = {"temperature": 0.0, "max_tokens": 1, "timeout": 60, "retries": 30}
        async with ChatAPI("m", "http://stub/v1", **sampling, concurrency=16) as api:
            monkeypatch.setattr(api, "_send", send_stub)
            return await api.ask([f"Question {number}?" for number in range(32)], [None] * 32)

    assert len(run(loop, ask())) == 32
    assert len(times) == 32 + told
    assert times[:16] == [0.0] * 16
    back = times[16:32]
    assert min(back) >= 0.61
    assert max(back) - min(back) > 0.15
    assert len(set(back)) == 16


def test_pauses_are_drawn_from_a_doubling_range(
    server: ChatAPIStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = []
    monkeypatch.setattr("data.chat.client.random.uniform", lambda *bounds: ranges.append(bounds) or 0.0)
    server.faults = [FAULTS[3]] * 6
    judge_by(server, tmp_path, concurrency=1).judge(unequal(1))
    assert ranges == [(0, 0.005), (0, 0.01), (0, 0.02), (0, 0.04), (0, 0.05), (0, 0.05)]
