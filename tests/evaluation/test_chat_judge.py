"""The judge: its outcomes, what it asks only once, its options, and a real server."""

import logging
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from data.chat.client import ChatAPI
from data.chat.settings import OPENAI_URL
from data.command.errors import UserError
from data.command.options import make_config
from evaluation.judging import make_judge
from evaluation.judging.base import Comparison, Judge, JudgeOptions, Outcome
from evaluation.judging.question import parse_verdict, read_template
from tests.support.chat_server import ChatAPIStub, chat_api_stub, said

KEY = "sk-a-secret-of-the-tests"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("data.chat.client.FIRST_PAUSE", 0.01)


def judge_by(server: ChatAPIStub, store: Path, **options: Any) -> Judge:
    settings = {"model": "m", "base_url": server.url, "timeout": 20, **options}
    return make_judge(make_config(JudgeOptions, **settings), str(store))


def rows_of(store: Path, number: int) -> list[dict[str, Any]]:
    """The rows of the store, as many as there must be."""
    with sqlite3.connect(store / "verdicts.sqlite") as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("SELECT * FROM verdicts ORDER BY shown")]
    assert len(rows) == number
    return rows


def pairs(number: int) -> list[Comparison]:
    return [Comparison(str(n), f"Question {n}?", f"good {n}", f"bad {n}") for n in range(number)]


def first_wins_if(better: Any) -> Any:
    """A judge that knows the better answer: (first shown, second shown) -> whether the first is."""

    def answer(request: dict[str, Any]) -> tuple[str, str]:
        shown = re.search(r"Response A: (.*)\n Response B: (.*)\n State", said(request))
        assert shown
        return ("A" if better(*shown.groups()) else "B", "stop")

    return answer


# --- outcomes ---


@pytest.mark.seconds
def test_each_pair_is_asked_in_both_orders(server: ChatAPIStub, tmp_path: Path) -> None:
    server.answer = first_wins_if(lambda a, b: a.startswith("good"))
    (outcome,) = judge_by(server, tmp_path).judge(pairs(1))
    assert outcome == Outcome(1.0, verdicts=("A", "B"))
    template = read_template("dolly")
    assert set(server.prompts) == {
        template.fill("Question 0?", "good 0", "bad 0"), template.fill("Question 0?", "bad 0", "good 0")
    }  # fmt: skip
    for request in server.requests:
        assert {key: value for key, value in request.items() if key != "messages"} == {
            "model": "m", "temperature": 0.0, "max_tokens": 8,
        }  # fmt: skip
        assert [message["role"] for message in request["messages"]] == ["user"]
    assert server.keys == {f"Bearer {KEY}"}


def test_the_answer_wins_loses_and_ties_by_what_both_orders_say(server: ChatAPIStub, tmp_path: Path) -> None:
    server.answer = first_wins_if(lambda a, b: a > b)
    comparisons = [
        Comparison("wins", "p", "z", "a"), Comparison("loses", "p", "a", "z"), Comparison("same", "p", " z", "z\n")
    ]  # fmt: skip
    assert judge_by(server, tmp_path).judge(comparisons) == [
        Outcome(1.0, verdicts=("A", "B")),
        Outcome(0.0, verdicts=("B", "A")),
        Outcome(0.5, reason="the answers are the same"),
    ]
    assert len(server.requests) == 2  # the second's questions are the first's, and the third has none


@pytest.mark.seconds
@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_judge_that_always_names_one_place_gives_ties_that_flip(
    server: ChatAPIStub, tmp_path: Path, letter: str
) -> None:
    server.answer = lambda request: (letter, "stop")
    outcomes = judge_by(server, tmp_path).judge(pairs(40))
    assert outcomes == [Outcome(0.5, flipped=True, verdicts=(letter, letter))] * 40
    assert len(server.requests) == 80


def test_the_papers_single_order_believes_a_judge_that_prefers_a_position(server: ChatAPIStub, tmp_path: Path) -> None:
    server.answer = lambda request: ("A", "stop")
    assert judge_by(server, tmp_path, orders="paper").judge(pairs(5)) == [Outcome(1.0, verdicts=("A",))] * 5
    template = read_template("dolly")
    assert set(server.prompts) == {template.fill(c.query, c.answer, c.other) for c in pairs(5)}
    server.requests.clear()
    assert judge_by(server, tmp_path).judge(pairs(5)) == [Outcome(0.5, True, ("A", "A"))] * 5
    assert set(server.prompts) == {template.fill(c.query, c.other, c.answer) for c in pairs(5)}


def test_a_verdict_that_cannot_be_parsed_is_no_outcome_and_never_a_loss(server: ChatAPIStub, tmp_path: Path) -> None:
    said_by = {"Question 0?": "Both are good.\n", "Question 1?": "", "Question 2?": None}

    def answer(request: dict[str, Any]) -> tuple[Any, str]:
        for question, words in said_by.items():
            if question in said(request) and "Response A: bad" in said(request):
                return words, "stop"
        return "A", "stop"

    server.answer = answer
    judge = judge_by(server, tmp_path)
    assert judge.judge(pairs(4)) == [
        Outcome(None, verdicts=("A", "?"), reason='the verdict cannot be parsed: "Both are good."'),
        Outcome(None, verdicts=("A", "?"), reason='the verdict cannot be parsed: ""'),
        Outcome(None, verdicts=("A", "?"), reason='the verdict cannot be parsed: ""'),
        Outcome(0.5, flipped=True, verdicts=("A", "A")),
    ]
    assert judge.spent()["unparsed"] == 3


def test_refusals_and_content_filters_are_not_judged(server: ChatAPIStub, tmp_path: Path) -> None:
    server.refuse = lambda request: "Question 0?" in said(request)
    server.answer = lambda r: ("A", "content_filter" if "Question 1?" in said(r) else "stop")
    judge = judge_by(server, tmp_path)
    outcomes = judge.judge(pairs(3))
    assert outcomes == [
        Outcome(None, verdicts=("?", "?"), reason="the API refuses the question: This is too long"),
        Outcome(None, verdicts=("?", "?"), reason="the API's content filter cut the verdict"),
        Outcome(0.5, flipped=True, verdicts=("A", "A")),
    ]
    assert (judge.spent()["unparsed"], judge.spent()["refused"]) == (2, 2)
    assert judge.judge(pairs(3)) == outcomes
    assert len(server.requests) == 6  # none again in this run


def test_a_question_that_was_refused_is_asked_again_by_the_next_run(server: ChatAPIStub, tmp_path: Path) -> None:
    """A server's or a model's limit may have been raised. A refusal is free, and no verdict."""
    server.answer = lambda request: ("A", "stop")
    server.refuse = lambda request: "Question 0?" in said(request)
    outcomes = judge_by(server, tmp_path).judge(pairs(3))
    rows_of(tmp_path, 4)
    again = judge_by(server, tmp_path)
    assert again.judge(pairs(3)) == outcomes
    assert (again.spent()["refused"], again.spent()["this_run"]["requests"]) == (2, 2)
    server.refuse = lambda request: False
    judge = judge_by(server, tmp_path)
    assert [outcome.score for outcome in judge.judge(pairs(3))] == [0.5] * 3
    assert judge.spent()["refused"] == 0
    assert len(server.requests) == 6 + 2 + 2


def test_a_model_whose_answers_are_all_refused_ends_no_run_that_had_verdicts(
    server: ChatAPIStub, tmp_path: Path
) -> None:
    server.answer = lambda request: ("A", "stop")
    server.refuse = lambda request: "long" in said(request)
    judge = judge_by(server, tmp_path)
    judge.judge(pairs(2))
    (refused,) = judge.judge([Comparison("1", "p", "long", "short")])
    assert refused.reason == "the API refuses the question: This is too long"


def test_a_server_that_refuses_everything_is_no_matter_of_one_question(server: ChatAPIStub, tmp_path: Path) -> None:
    server.answer = lambda request: ("A", "stop")
    server.refuse = lambda request: True
    with pytest.raises(
        UserError, match=r"takes every request for a bad one \(This is too long\). Check the --judge opt"
    ):
        judge_by(server, tmp_path).judge(pairs(2))
    server.refuse = lambda request: False
    assert [outcome.score for outcome in judge_by(server, tmp_path).judge(pairs(2))] == [0.5, 0.5]  # nothing was kept


# --- never paid for twice ---


def test_verdicts_that_the_store_holds_are_not_asked_for_again(server: ChatAPIStub, tmp_path: Path) -> None:
    server.answer = first_wins_if(lambda a, b: len(a) > len(b))
    first = judge_by(server, tmp_path)
    outcomes = first.judge(pairs(10))
    assert {outcome.score for outcome in outcomes} == {1.0}
    used = {"input_tokens": server.bill[0], "output_tokens": 20, "cost": None}
    verdicts = {**used, "verdicts": 20, "without_tokens": 0, "unparsed": 0, "refused": 0, "base_urls": [server.url]}
    assert first.spent() == {**verdicts, "this_run": {**used, "requests": 20, "reused": 0}}
    assert server.bill[0] == sum(len(prompt) // 4 + 8 for prompt in server.prompts)
    server.requests.clear()
    again = judge_by(server, tmp_path, concurrency=1, timeout=5, retries=0, max_requests=0, temperature=0)
    assert again.judge(pairs(10)) == outcomes
    nothing = {"requests": 0, "reused": 20, "input_tokens": 0, "output_tokens": 0, "cost": None}
    assert again.spent() == {**verdicts, "this_run": nothing}
    with chat_api_stub() as moved:
        moved.answer = server.answer
        assert len(judge_by(moved, tmp_path).judge(pairs(12))) == 12
        assert len(moved.requests) == 4
    assert server.requests == []


def test_the_cost_of_verdicts_does_not_depend_on_which_run_asked_for_them(server: ChatAPIStub, tmp_path: Path) -> None:
    server.answer = lambda request: ("A", "stop")
    prices = {"input_price": 3, "output_price": 20}
    judge_by(server, tmp_path).judge(pairs(4))  # interrupted, and without prices
    judge = judge_by(server, tmp_path, **prices)
    for _ in range(2):  # against two opponents with the same answers
        judge.judge(pairs(10))
    spent = judge.spent()
    assert (spent["input_tokens"], spent["output_tokens"], spent["verdicts"]) == (*server.bill, 20)
    assert spent["cost"] == pytest.approx((3 * server.bill[0] + 20 * server.bill[1]) / 1e6)
    assert (spent["this_run"]["requests"], spent["this_run"]["reused"]) == (12, 8)
    assert spent["this_run"]["output_tokens"] == 12
    assert spent["this_run"]["cost"] < spent["cost"]
    server.says_tokens = False
    silent = judge_by(server, tmp_path, **prices)
    silent.judge(pairs(11))
    assert silent.spent()["without_tokens"] == 2
    assert silent.spent()["cost"] == spent["cost"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_verdicts_of_another_server_are_used_and_told_of(
    server: ChatAPIStub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = lambda request: ("A", "stop")
    judge_by(server, tmp_path, base_url=server.url.replace("//", "//user:password@")).judge(pairs(2))
    assert {row["base_url"] for row in rows_of(tmp_path, 4)} == {server.url}
    with chat_api_stub() as moved, caplog.at_level(logging.INFO, logger="evaluation"):
        moved.answer = server.answer
        judge = judge_by(moved, tmp_path)
        for _ in range(2):
            judge.judge(pairs(3))
        assert len(moved.requests) == 2
        assert warnings(caplog) == [
            f"judge: 4 of 4 stored verdicts that are used again came from another server than {moved.url}: 4 from "
            f"{server.url}"
        ]
        assert judge.identity()["base_url"] == moved.url
        assert judge.spent()["base_urls"] == sorted([server.url, moved.url])
    caplog.clear()
    judge_by(server, tmp_path).judge(pairs(2))
    assert warnings(caplog) == []


@pytest.mark.parametrize("change", [{"model": "n"}, {"temperature": 0.5}, {"max_tokens": 9}, {"seed": 1}])
def test_another_judge_is_asked_the_same_questions_anew(
    server: ChatAPIStub, tmp_path: Path, change: dict[str, Any]
) -> None:
    server.answer = lambda request: ("A", "stop")
    judge_by(server, tmp_path).judge(pairs(2))
    judge_by(server, tmp_path, **change).judge(pairs(2))
    assert len(server.requests) == 8
    assert change.items() <= server.requests[-1].items()


def test_another_template_is_another_question(server: ChatAPIStub, tmp_path: Path) -> None:
    server.answer = lambda request: ("A", "stop")
    url = server.url.replace("//", "//user:password@")
    judges = [judge_by(server, tmp_path, template=name, base_url=url) for name in ("dolly", "wiki")]
    for judge in judges:
        judge.judge(pairs(2))
    assert len(set(server.prompts)) == 8
    identities = [judge.identity() for judge in judges]
    assert identities[0] == {
        "model": "m", "temperature": 0.0, "max_tokens": 8, "seed": None, "orders": "both",
        "template": "dolly", "template_sha256": read_template("dolly").sha256, "base_url": server.url,
    }  # fmt: skip
    assert identities[0] != identities[1]


def test_equal_questions_of_one_call_are_asked_once(server: ChatAPIStub, tmp_path: Path) -> None:
    server.answer = lambda request: ("A", "stop")
    assert len(judge_by(server, tmp_path).judge(pairs(3) * 4)) == 12
    assert len(server.requests) == 6


def test_every_verdict_is_a_row_that_explains_itself(server: ChatAPIStub, tmp_path: Path) -> None:
    from data.storage import sha256

    server.answer = lambda request: ("Response A", "stop")
    judge_by(server, tmp_path).judge(pairs(1))
    rows = rows_of(tmp_path, 2)
    assert [row["shown"] for row in rows] == ["AB", "BA"]
    for row in rows:
        assert (row["model"], row["raw"], row["verdict"], row["finish_reason"]) == ("m", "Response A", "A", "stop")
        assert row["template_sha256"] == read_template("dolly").sha256
        assert row["prompt_sha256"] == sha256(b"Question 0?")
        assert row["base_url"] == server.url
    assert [sum(row[name] for row in rows) for name in ("input_tokens", "output_tokens")] == server.bill


def test_texts_that_are_no_unicode_can_be_judged(server: ChatAPIStub, tmp_path: Path) -> None:
    server.answer = lambda request: ("B \ud83d", "stop")
    odd = Comparison("1", "a \ud83d b", "\x00 \udfff", "שלום 🙂")
    assert judge_by(server, tmp_path).judge([odd]) == [Outcome(0.5, True, ("B", "B"))]


def test_a_judges_progress_is_logged(
    server: ChatAPIStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("evaluation.judging.chat_judge.PROGRESS_SECONDS", 0.0)
    server.answer = lambda request: ("A", "stop")
    with caplog.at_level(logging.INFO, logger="evaluation"):
        judge_by(server, tmp_path, input_price=1, output_price=2).judge(pairs(2))
    cost = (server.bill[0] + 2 * server.bill[1]) / 1e6
    assert caplog.messages[0] == "judge: asking m 4 questions"
    assert caplog.messages[-1] == (
        f"judge: 4 of 4 questions answered; 4 requests, {server.bill[0]} input and 4 output tokens, a cost of "
        f"{cost:.6g} at most"
    )
    assert len(caplog.messages) >= 3


# --- options ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a judge needs --judge.model, the name of a chat model"),
        ({"model": ""}, "a judge needs --judge.model"),
        ({"model": "m", "modell": "x"}, "unknown key 'modell' of JudgeOptions. Did you mean 'model'"),
        ({"model": "m", "base_url": f"http://host/v1?key={KEY}"}, "--judge.base_url must be an address"),
        ({"model": "m", "orders": "one"}, "--judge.orders must be both or paper, got 'one'"),
        ({"model": "m", "orders": ["both"]}, "'orders' of JudgeOptions must be text"),
        ({"model": "m", "temperature": -1}, "--judge.temperature must be a number, 0 or more"),
        ({"model": "m", "max_tokens": 0}, "--judge.max_tokens must be a whole number, 1 or more"),
        ({"model": "m", "concurrency": 0}, "--judge.concurrency must be"),
        ({"model": "m", "max_requests": 1.5}, "'max_requests' of JudgeOptions must be a whole number"),
        ({"model": "m", "max_requests": -1}, "--judge.max_requests must be a whole number, 0 or more"),
        ({"model": "m", "max_cost": "low"}, "'max_cost' of JudgeOptions must be a number"),
        ({"model": "m", "max_cost": -1}, "--judge.max_cost must be a number, 0 or more"),
        ({"model": "m", "seed": "x"}, "'seed' of JudgeOptions must be a whole number"),
        ({"model": "m", "seed": -1}, "--judge.seed must be a whole number, 0 or more"),
        ({"model": "m", "max_cost": 1.0}, "costs need both --judge.input_price and --judge.output_price"),
        ({"model": "m", "input_price": 1.0}, "costs need both"),
        ({"model": "m", "template": "/no/such/file"}, "template '/no/such/file' cannot be read"),
        ({"model": "m", "template": "\x00"}, "cannot be read"),
        ({"model": "m", "reward_model": "x"}, "--judge.reward_model takes no other option, got --judge.model"),
        ({"reward_model": "/no/such/model"}, "--judge.reward_model '/no/such/model' cannot be used"),
    ],
)
def test_a_bad_option_of_the_judge_is_refused_in_one_line(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_judge(make_config(JudgeOptions, **options), str(tmp_path / "store"))
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_openai_itself_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match=r"\$OPENAI_API_KEY is not set. Set it, or give --judge.base_url of another"):
        make_judge(JudgeOptions(model=["gpt-3.5-turbo"]), str(tmp_path))
    make_judge(JudgeOptions(model=["m"], base_url="http://localhost:8000/v1"), str(tmp_path))


# --- a real server ---


def test_vllm_serve_is_a_judge(vllm_url: str, tmp_path: Path) -> None:
    """A random model says nothing that names an answer: every answer is kept, none is a loss."""
    options = JudgeOptions(model=["tiny"], base_url=vllm_url, input_price=[2.0], output_price=[4.0])
    judge = make_judge(options, str(tmp_path))
    outcomes = judge.judge(pairs(8))
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as connection:
        rows = connection.execute("SELECT raw, finish_reason, input_tokens, output_tokens FROM verdicts").fetchall()
    assert len(rows) == 16
    assert {parse_verdict(raw) for raw, *_ in rows} == {"?"}
    assert [outcome.score for outcome in outcomes] == [None] * 8
    assert all(outcome.reason.startswith("the verdict cannot be parsed: ") for outcome in outcomes)
    assert all(count == 8 or reason == "stop" for _, reason, _, count in rows)
    spent = judge.spent()["this_run"]
    used = [sum(row[column] for row in rows) for column in (2, 3)]
    assert (spent["requests"], spent["input_tokens"], spent["output_tokens"]) == (16, *used)
    assert spent["cost"] == pytest.approx((2 * used[0] + 4 * used[1]) / 1e6)
    again = make_judge(options, str(tmp_path))
    assert again.judge(pairs(8)) == outcomes
    assert again.spent()["this_run"]["requests"] == 0


def test_vllm_refuses_what_is_too_long_and_judges_the_rest(vllm_url: str, tmp_path: Path) -> None:
    judge = make_judge(JudgeOptions(model=["tiny"], base_url=vllm_url), str(tmp_path))
    long = Comparison("long", "Question " * 600, "good", "bad")
    refused, other = judge.judge([long, *pairs(1)])
    assert refused.reason.startswith("the API refuses the question: ")
    assert "maximum context length is 512 tokens" in refused.reason
    assert other.reason.startswith("the verdict cannot be parsed: ")


def test_openai_is_told_the_limit_by_its_new_name_and_others_by_the_old_one(
    server: ChatAPIStub, tmp_path: Path
) -> None:
    def sampling(base_url: str, temperature: float | None) -> dict[str, Any]:
        options: dict[str, Any] = {"concurrency": 1, "timeout": 1, "retries": 0}
        return ChatAPI("m", base_url, temperature=temperature, max_tokens=8, **options).sampling

    assert sampling(OPENAI_URL, 0.0) == {"max_completion_tokens": 8, "temperature": 0.0}
    assert sampling(server.url, 0.0) == {"max_tokens": 8, "temperature": 0.0}
    assert sampling(OPENAI_URL, None) == {"max_completion_tokens": 8}
    server.answer = lambda request: ("A", "stop")
    judge_by(server, tmp_path, temperature=None).judge(pairs(1))
    assert "temperature" not in server.requests[0]
