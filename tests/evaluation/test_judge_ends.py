"""A judge that is interrupted, and what it never says: the key."""

import asyncio
import base64
import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data.command.errors import UserError
from evaluation.judging.base import Comparison
from evaluation.judging.interrupts import stopping_at_signals
from tests.support.chat_server import ChatAPIStub
from tests.support.commands import ForkedCommand
from tests.support.judged import KEY, judge_by, rows, scores, unequal

pytestmark = [pytest.mark.seconds, pytest.mark.usefixtures("api_environment")]

CHILD = """
import sys
from evaluation.judging import make_judge
from evaluation.judging.base import JudgeOptions
from tests.support.judged import unequal
make_judge(JudgeOptions(model=["m"], base_url=sys.argv[1], concurrency=4), sys.argv[2]).judge(unequal(150))
"""


def start(server: ChatAPIStub, store: Path) -> ForkedCommand:
    (store / "judging_child.py").write_text(CHILD)
    return ForkedCommand.start("judging_child", server.url, str(store), cwd=store)


def wait_until(condition: Callable[[], bool], child: ForkedCommand) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("ending", "codes", "lost"),
    [(signal.SIGKILL, {-9}, 4), (signal.SIGTERM, {143}, 0), (signal.SIGINT, {130, -signal.SIGINT}, 0)],
)
def test_an_interrupted_judge_goes_on_and_asks_nothing_twice(
    server: ChatAPIStub, tmp_path: Path, ending: signal.Signals, codes: set[int], lost: int
) -> None:
    """SIGTERM and SIGINT wait for the requests under way, of which there are four at most; SIGKILL loses these."""
    server.seconds = 0.1
    child = start(server, tmp_path)
    wait_until(lambda: len(server.answered) >= 40, child)
    os.kill(child.pid, ending)
    assert child.wait(timeout=30) in codes
    assert ("waiting for" in child.stderr) == (not lost)
    sent, kept = len(server.requests), len(rows(tmp_path))
    assert sent - lost <= kept <= sent < 200
    time.sleep(0.3)
    assert len(server.requests) == sent
    server.seconds = 0.0
    judge = judge_by(server, tmp_path)
    assert [outcome.score for outcome in judge.judge(unequal(150))] == scores(150)
    assert (judge.spent()["this_run"]["reused"], len(server.requests) - sent) == (kept, 200 - kept)
    assert len(rows(tmp_path)) == 200
    if not lost:
        assert len(server.prompts) == len(set(server.prompts)) == 200


def test_a_second_sigint_ends_at_once(server: ChatAPIStub, tmp_path: Path) -> None:
    server.seconds = 60
    child = start(server, tmp_path)
    wait_until(lambda: len(server.requests) == 4, child)
    os.kill(child.pid, signal.SIGTERM)
    time.sleep(1)
    assert child.poll() is None
    os.kill(child.pid, signal.SIGINT)
    assert child.wait(timeout=20) in (130, -signal.SIGINT)
    assert rows(tmp_path) == []


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_that_comes_with_the_last_answer_is_not_forgotten(number: int, ends: type[BaseException]) -> None:
    async def work() -> None:
        with stopping_at_signals(lambda error: None):
            os.kill(os.getpid(), number)

    with pytest.raises(ends) as ended:
        asyncio.run(work())
    assert getattr(ended.value, "code", 143) == 143


def test_signal_handlers_are_put_back_after_judging(server: ChatAPIStub, tmp_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    judge_by(server, tmp_path).judge(unequal(3))
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_judge_works_in_a_thread(server: ChatAPIStub, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        outcomes = pool.submit(judge_by(server, tmp_path).judge, unequal(3)).result(timeout=60)
    assert [outcome.score for outcome in outcomes] == scores(3)


def test_a_password_of_the_address_that_the_server_repeats_is_in_no_error_and_no_store(
    server: ChatAPIStub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header = base64.b64encode(b"ann:pass word-1").decode()
    address = server.url.replace("://", "://ann:pass%20word-1@")
    server.answer = lambda request: (f"Basic {header}, pass word-1: A", "stop")
    judge = judge_by(server, tmp_path, base_url=address, concurrency=1)
    judge.judge(unequal(1))
    assert b"Basic ***, ***: A" in (tmp_path / "verdicts.sqlite").read_bytes()
    assert server.keys == {f"Basic {header}"}
    server.faults = [(418, {}, {"error": {"message": f"not Basic {header}"}})]
    with pytest.raises(UserError, match=r"\(418: not Basic \*\*\*\)") as caught:
        judge.judge([Comparison("1", "p", "a", "b")])
    seen = [str(caught.value), caplog.text, *(str(path.read_bytes()) for path in tmp_path.rglob("*"))]
    assert not [text for text in seen if header in text or "word-1" in text]


def test_the_key_is_in_no_store_no_log_and_no_error(
    server: ChatAPIStub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that repeats it in its answers, its refusals and its errors."""
    leak = {"error": {"message": f"Wrong key {KEY}, look."}}
    server.answer = lambda request: (f"{KEY} says A", "stop")
    server.faults = [(400, {}, leak), (500, {}, leak), (429, {}, leak)]
    judge = judge_by(server, tmp_path, concurrency=1)
    with caplog.at_level(logging.INFO):
        outcomes = judge.judge(unequal(6))
        server.faults = [(418, {}, leak)]
        with pytest.raises(UserError, match=r"refuses the request \(418: Wrong key \*\*\*, look\)") as caught:
            judge.judge([Comparison("1", "p", "a", "b")])
    assert outcomes[0].reason == "the API refuses the question: Wrong key ***, look"
    assert server.keys == {f"Bearer {KEY}"}
    seen = [repr(outcomes), repr(judge.identity()), repr(judge.spent()), str(caught.value), caplog.text]
    assert not [text for text in seen if KEY in text]
    assert caught.value.__cause__ is None
    for path in tmp_path.rglob("*"):
        assert KEY.encode() not in path.read_bytes()
    assert b"*** says A" in (tmp_path / "verdicts.sqlite").read_bytes()
