"""A judge behind a server with every fault: no verdict is lost or counted twice, no cap is exceeded by one request."""

import asyncio
import base64
import logging
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from data.chat.budget import Budget, Tokens, asked_tokens
from data.chat.client import ChatAPI, asked_pause
from data.command.errors import UserError
from data.command.options import make_config
from evaluation.judging import make_judge
from evaluation.judging.base import Comparison, Judge, JudgeOptions
from evaluation.judging.interrupts import stopping_at_signals
from tests.support.chat_server import GARBAGE, HALF, NOTHING, ChatAPIStub, Fault, chat_api_stub, said
from tests.support.commands import ForkedCommand

pytestmark = pytest.mark.seconds

KEY = "sk-a-secret-of-the-tests"
TIMEOUT = 10.0  # seconds, of the test that waits for it: a busy machine answers before
FAULTS: list[Fault] = [
    (429, {"Retry-After": "0.05"}, {"error": {"message": "slow down"}}),
    (429, {"retry-after-ms": "30"}, ""),
    (429, {}, ""),
    (500, {}, "down"),
    (502, {"Content-Type": "text/html"}, "<html>\nbad gateway</html>"),
    (408, {}, ""),
    GARBAGE,
    NOTHING,
    HALF,
    (200, {}, {"id": "1", "object": "chat.completion", "choices": []}),
    (200, {}, {"id": "1", "object": "chat.completion", "choices": [{"index": 0}]}),
    (200, {}, "[]"),
    (200, {}, '"A"'),
    (200, {}, ""),
    (200, {"Content-Encoding": "gzip"}, "no gzip"),
    (200, {"Content-Encoding": "deflate"}, "no deflate \u00ff"),
    (200, {}, "[" * 200_000),
]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("data.chat.client.FIRST_PAUSE", 0.005)
    monkeypatch.setattr("data.chat.client.LONGEST_PAUSE", 0.05)


@pytest.fixture
def server() -> Iterator[ChatAPIStub]:
    with chat_api_stub() as stub:
        stub.answer = longer
        yield stub


def longer(request: dict[str, Any]) -> tuple[str, str]:
    """A judge that prefers the longer answer."""
    a, b = (said(request).split(f"Response {letter}: ")[1].split("\n")[0] for letter in "AB")
    return ("A" if len(a) > len(b) else "B"), "stop"


def random_faults(share: float, hanging: Sequence[int] = ()) -> Callable[[int], Fault | None]:
    """Faults of so many of the requests; those of these numbers hang until the client gives them up."""

    def fault_of(number: int) -> Fault | None:
        draw = random.Random(number)
        if number in hanging:
            return TIMEOUT + 1
        return draw.choice(FAULTS) if draw.random() < share else None

    return fault_of


def judge_by(server: ChatAPIStub, store: Path, **options: Any) -> Judge:
    settings = {"model": "m", "base_url": server.url, "timeout": 60, "retries": 30}
    return make_judge(make_config(JudgeOptions, **{**settings, **options}), str(store))


def pairs(number: int) -> list[Comparison]:
    """The answer to every third question is the longer one."""
    return [Comparison(str(n), f"Question {n}?", "x" * (n % 3), "y") for n in range(number)]


def scores(number: int) -> list[float]:
    return [float(n % 3 == 2) for n in range(number) if n % 3 != 1]


def unequal(number: int) -> list[Comparison]:
    return [c for c in pairs(number) if len(c.answer) != len(c.other)]


def rows(store: Path) -> list[str]:
    if not (store / "verdicts.sqlite").exists():
        return []
    with sqlite3.connect(store / "verdicts.sqlite") as connection:
        return [key for (key,) in connection.execute("SELECT key FROM verdicts")]


# --- faults ---


@pytest.mark.parametrize("judgments", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_of_many_judgments_under_faults_none_is_lost_and_none_counted_twice(
    server: ChatAPIStub, tmp_path: Path, judgments: int
) -> None:
    questions = judgments * 3 // 4  # of which two thirds are judged, in both orders
    server.fault_of = random_faults(0.3, hanging=(5, 40, 80))
    waiting, together = iter(range(8)), threading.Barrier(8)

    def answer(request: dict[str, Any]) -> tuple[str, str]:
        """The first eight wait for one another, or a busy machine would answer each before the next comes."""
        if next(waiting, None) is not None:
            together.wait(TIMEOUT / 2)
        return longer(request)

    server.answer = answer
    judge = judge_by(server, tmp_path, timeout=TIMEOUT)
    outcomes = judge.judge(unequal(questions))
    assert [outcome.score for outcome in outcomes] == scores(questions)
    assert len(rows(tmp_path)) == len(set(rows(tmp_path))) == judgments
    asked = Counter(said(request) for request in server.answered)
    assert len(asked) == judgments
    assert set(asked.values()) == {1}
    spent = judge.spent()
    this_run = spent["this_run"]
    assert (this_run["requests"], spent["unparsed"], this_run["reused"]) == (len(server.requests), 0, 0)
    assert len(server.requests) > 1.3 * judgments
    assert spent["input_tokens"] == sum(server.tokens(request)[0] for request in server.answered)
    assert server.most_in_flight >= 8


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: repr(fault)[:40])
def test_a_request_that_meets_a_fault_is_sent_again(server: ChatAPIStub, tmp_path: Path, fault: Fault) -> None:
    server.faults = [fault]
    (outcome,) = judge_by(server, tmp_path, concurrency=1).judge(pairs(3)[2:])
    assert outcome.score == 1.0
    assert len(server.requests) == 3


def test_an_answer_that_does_not_come_is_asked_for_again(server: ChatAPIStub, tmp_path: Path) -> None:
    server.faults = [1.0]
    (outcome,) = judge_by(server, tmp_path, concurrency=1, timeout=0.5).judge(pairs(3)[2:])
    assert outcome.score == 1.0
    assert len(server.requests) >= 3


def test_the_cap_on_requests_is_kept_to_the_request(server: ChatAPIStub, tmp_path: Path) -> None:
    server.fault_of = random_faults(0.3)
    comparisons, sent = unequal(150), 0
    for cap in (0, 1, 7, 50):
        with pytest.raises(UserError, match=rf"^--judge.max_requests {cap} leaves no room .*: {cap} requests, "):
            judge_by(server, tmp_path, max_requests=cap).judge(comparisons)
        sent += cap
        assert len(server.requests) == sent
        assert len(rows(tmp_path)) == len(server.answered)
    outcomes = judge_by(server, tmp_path, max_requests=1000).judge(comparisons)
    assert [outcome.score for outcome in outcomes] == scores(150)
    assert set(Counter(said(request) for request in server.answered).values()) == {1}
    assert len(rows(tmp_path)) == len(server.answered) == 200


PRICES = {"input_price": 3.0, "output_price": 20.0}


def price(tokens: Any) -> float:
    return (tokens[0] * 3 + tokens[1] * 20) / 1e6


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("cap", [0.0, 0.002, 0.03])
def test_the_cap_on_cost_is_kept_and_used(server: ChatAPIStub, tmp_path: Path, share: float, cap: float) -> None:
    """What the server bills stays under the cap; without faults less than one more request is left of it."""
    server.fault_of = random_faults(share)
    judge = judge_by(server, tmp_path, max_cost=cap, **PRICES)
    with pytest.raises(
        UserError, match=rf"^--judge.max_cost {cap} leaves no room .*a cost of [0-9.e-]+ at most so far"
    ):
        judge.judge(unequal(600))
    cost = judge.spent()["this_run"]["cost"]
    assert price(server.bill) <= cost <= cap
    if not share:
        dearest = price(Budget().dearest(asked_tokens(max(server.prompts, key=len, default=""), 8)))
        assert cost == pytest.approx(price(server.bill))
        assert cap - cost < dearest
    assert len(rows(tmp_path)) == len(server.answered)


def test_a_server_that_does_not_say_what_it_takes_is_counted_at_the_dearest(
    server: ChatAPIStub, tmp_path: Path
) -> None:
    server.says_tokens = False
    comparisons = [Comparison(str(n), f"Question {n:03}?", "x", "yy") for n in range(100)]
    judge = judge_by(server, tmp_path, max_cost=0.1, **PRICES)
    with pytest.raises(UserError, match="leaves no room"):
        judge.judge(comparisons)
    dearest = price(Budget().dearest(asked_tokens(server.prompts[0], 8)))
    assert len(server.requests) == int(0.1 / dearest)
    assert judge.spent()["this_run"]["cost"] == pytest.approx(len(server.requests) * dearest)


ONE_EACH = {"input_price": 1.0, "output_price": 1.0}


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize(("cap", "least"), [(0.02, 5), (0.2, 55)])
def test_a_server_with_a_long_system_prompt_stays_under_the_cap(
    server: ChatAPIStub, tmp_path: Path, cap: float, least: int, share: float
) -> None:
    """The server bills 3,000 input tokens for each request, those that it does not answer included."""
    # So long that on a busy machine too sixteen requests are under way together.
    server.tokens, server.seconds, server.fault_of = (
        lambda r: (3000, 1),
        0.5 if cap > 0.1 else 0.05,
        random_faults(share),
    )
    with pytest.raises(UserError, match=f"max_cost {cap} leaves no room"):
        judge_by(server, tmp_path, max_cost=cap, **ONE_EACH).judge(unequal(300))
    assert sum(server.bill) / 1e6 <= cap
    if not share:
        assert len(server.requests) >= least
        assert cap < 0.1 or server.most_in_flight == 16


def test_only_what_is_sent_before_the_first_answer_can_exceed_the_cap(server: ChatAPIStub, tmp_path: Path) -> None:
    server.tokens, server.seconds = lambda r: (3000, 1), 0.05
    with pytest.raises(UserError, match=r"max_cost 0.002 leaves no room"):
        judge_by(server, tmp_path, max_cost=0.002, **ONE_EACH).judge(unequal(30))
    assert len(server.requests) == len(rows(tmp_path)) == 1


def test_a_server_that_adds_ever_more_is_asked_one_at_a_time(server: ChatAPIStub, tmp_path: Path) -> None:
    """Each request takes 1,000 tokens more than the one before; the 16 that are sent before that is seen fit."""
    server.tokens, server.seconds = lambda r: (3000 + 1000 * len(server.requests), 1), 0.05
    with pytest.raises(UserError, match=r"max_cost 0.4 leaves no room"):
        judge_by(server, tmp_path, max_cost=0.4, **ONE_EACH).judge(unequal(300))
    assert len(server.requests) > 22
    apart = [later - earlier for earlier, later in zip(server.times[17:], server.times[18:], strict=False)]
    assert min(apart) >= 0.05
    assert sum(server.bill) / 1e6 <= 0.4 + 0.001


def test_a_server_that_ignores_the_limit_of_tokens_is_reckoned_with(server: ChatAPIStub, tmp_path: Path) -> None:
    server.tokens = lambda r: (50, 2000)
    with pytest.raises(UserError, match=r"max_cost 0.1 leaves no room"):
        judge_by(server, tmp_path, max_cost=0.1, **ONE_EACH).judge(unequal(300))
    assert 0.09 < sum(server.bill) / 1e6 <= 0.1


def test_without_a_cap_on_cost_all_places_are_used_at_once(server: ChatAPIStub, tmp_path: Path) -> None:
    server.seconds = 0.2
    judge_by(server, tmp_path).judge(unequal(12))
    assert server.most_in_flight == 16
    assert max(server.times) - min(server.times) < 0.2


def test_a_cap_holds_over_all_that_a_judge_is_asked(server: ChatAPIStub, tmp_path: Path) -> None:
    judge = judge_by(server, tmp_path, max_requests=10)
    judge.judge(unequal(3))
    with pytest.raises(UserError, match="max_requests 10 leaves no room"):
        judge.judge(unequal(30))
    assert len(server.requests) == 10


def test_an_error_for_good_stops_the_rest_and_keeps_what_is_under_way(server: ChatAPIStub, tmp_path: Path) -> None:
    server.seconds, server.lock_after = 0.2, 7
    with pytest.raises(UserError, match=r"refuses the key \(401\)"):
        judge_by(server, tmp_path, concurrency=4).judge(unequal(60))
    assert len(server.requests) <= 11
    assert len(rows(tmp_path)) == len(server.answered) == 7


def test_what_nobody_expects_stops_the_rest_and_keeps_what_is_under_way(
    server: ChatAPIStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.seconds, read, answers = 0.2, ChatAPI._read, []

    def broken_once(self: Any, completion: Any) -> Any:
        answers.append(completion)
        if len(answers) == 2:
            raise AttributeError("a fault of a library")
        return read(self, completion)

    monkeypatch.setattr(ChatAPI, "_read", broken_once)
    with pytest.raises(AttributeError, match="a fault of a library"):
        judge_by(server, tmp_path, concurrency=4).judge(unequal(60))
    assert len(rows(tmp_path)) == len(server.answered) - 1 == len(answers) - 1
    assert 4 <= len(server.requests) <= 8


def test_a_redirect_is_no_request_that_nobody_counts(server: ChatAPIStub, tmp_path: Path) -> None:
    server.faults = [(307, {"Location": server.url + "/chat/completions"}, "")]
    with pytest.raises(UserError, match=r"redirects to another address \(307"):
        judge_by(server, tmp_path, concurrency=1).judge(unequal(3))
    assert len(server.requests) == 1


# --- pauses ---


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


def test_prompts_are_taken_when_there_is_a_free_place(server: ChatAPIStub) -> None:
    """No more of a hundred thousand prompts are alive than requests are under way."""
    drawn = 0

    def prompts() -> Iterator[str]:
        nonlocal drawn
        for drawn in range(1, 100_001):
            yield f"Response A: {'x' * (drawn % 9)}\nResponse B: y\n"

    async def ask() -> None:
        sampling = {"temperature": 0.0, "max_tokens": 1, "timeout": 60, "retries": 0}
        async with ChatAPI("m", server.url, **sampling, concurrency=8, budget=Budget(max_requests=100)) as api:
            await api.ask(prompts(), [None] * 100_000)

    with pytest.raises(UserError, match="max_requests 100 leaves no room"):
        asyncio.run(ask())
    assert len(server.requests) == 100
    assert 100 <= drawn <= 108


def test_the_budget_learns_from_answers_which_tokens_a_server_adds() -> None:
    budget, asked = Budget(max_cost=1.0), asked_tokens("hello", 8)
    assert budget.dearest(asked) == Tokens(5 + 256, 8)
    lost, free, answered, later = (budget.reserve(asked) for _ in range(4))
    assert budget.one_at_a_time
    budget.release(free)  # says nothing
    assert budget.one_at_a_time
    budget.settle(answered, Tokens(1000, 2))
    assert not budget.one_at_a_time
    assert budget.dearest(asked) == Tokens(1005, 8)
    assert (budget.requests, budget.used, budget.open) == (4, Tokens(1000, 2), 2)
    budget.input_price, budget.output_price = 1.0, 100.0
    assert budget.cost == pytest.approx((1000 + 200 + 2 * (1005 + 800)) / 1e6)  # with what was sent before it was known
    budget.settle(lost, Tokens(3000, 2))
    budget.settle(later, Tokens(900, 2))  # sent before the server was seen to add more
    assert (budget.one_at_a_time, budget.dearest(asked)) == (True, Tokens(3005, 8))
    for used, narrow, dearest in (
        (Tokens(3005, 8), False, Tokens(3005, 8)),
        (Tokens(900, 20), True, Tokens(3005, 20)),
        (Tokens(3005, 20), False, Tokens(3005, 20)),
    ):
        budget.settle(budget.reserve(asked), used)
        assert (budget.one_at_a_time, budget.dearest(asked)) == (narrow, dearest)


# --- interruptions ---

CHILD = """
import sys
from tests.evaluation.test_judge_faults import JudgeOptions, make_judge, unequal
make_judge(JudgeOptions(model="m", base_url=sys.argv[1], concurrency=4), sys.argv[2]).judge(unequal(150))
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


# --- the key ---


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
