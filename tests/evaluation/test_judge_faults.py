"""A judge behind a server with every fault: no verdict is lost or counted twice, no cap is exceeded by one request."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.chat.budget import Budget, Tokens, asked_tokens
from data.chat.client import ChatAPI
from data.command.errors import UserError
from data.command.wording import counted
from evaluation.judging.base import Comparison
from tests.support.chat_server import ChatAPIStub, Fault, said
from tests.support.judged import FAULTS, TIMEOUT, judge_by, longer, pairs, random_faults, rows, scores, unequal

pytestmark = [pytest.mark.seconds, pytest.mark.usefixtures("api_environment")]


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
        spent = counted(cap, "request")
        with pytest.raises(UserError, match=rf"^--judge.max_requests {cap} leaves no room .*: {spent}, "):
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
