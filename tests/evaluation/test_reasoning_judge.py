"""Models that think before they answer: what they think does not count, and what their servers refuse is not sent."""

import logging
from pathlib import Path
from typing import Any

import pytest

from data.chat.client import unsupported_parameter
from data.command.errors import UserError
from data.command.options import make_config
from evaluation.judging.base import JudgeOptions
from tests.support.chat_server import ChatAPIStub, Response
from tests.support.judged import judge_by, longer, scores, unequal

pytestmark = pytest.mark.usefixtures("api_environment")

# As OpenAI's reasoning models refuse what they do not take.
NO_MAX_TOKENS = {
    "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
    "instead.",
    "type": "invalid_request_error", "param": "max_tokens", "code": "unsupported_parameter",
}  # fmt: skip
NO_TEMPERATURE = {
    "message": "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is "
    "supported.",
    "type": "invalid_request_error", "param": "temperature", "code": "unsupported_value",
}  # fmt: skip
# As vLLM refuses a prompt that is too long: a matter of that prompt.
TOO_LONG = {
    "message": "'max_tokens' or 'max_completion_tokens' is too large: 8. This model's maximum context length is 512 "
    "tokens and your request has 600 input tokens.",
    "type": "BadRequestError", "param": "max_tokens", "code": 400,
}  # fmt: skip
SENT = ("max_tokens", "temperature", "seed")


class ReasoningStub:
    """What a server of reasoning models says to the last request of a stub."""

    def __init__(self, server: ChatAPIStub):
        self.server = server

    def __call__(self, number: int) -> Response | None:
        request = self.server.requests[number]
        if "max_tokens" in request:
            return 400, {}, {"error": NO_MAX_TOKENS}
        return (400, {}, {"error": NO_TEMPERATURE}) if "temperature" in request else None


def test_what_a_server_does_not_support_is_a_line_that_names_the_option(server: ChatAPIStub, tmp_path: Path) -> None:
    server.fault_of = ReasoningStub(server)
    with pytest.raises(UserError) as caught:
        judge_by(server, tmp_path, concurrency=1).judge(unequal(40))
    assert str(caught.value) == (
        f"{server.url} does not take max_tokens of 'm' (Unsupported parameter: 'max_tokens' is not supported with this "
        "model. Use 'max_completion_tokens' instead). Give --judge.max_completion_tokens N: all that it may think and "
        "say, e.g. 4096."
    )
    assert len(server.requests) == 1  # and not once more for each question
    with pytest.raises(UserError, match=r"does not take temperature of 'm' \(Unsup.*Give --judge.temperature none\.$"):
        judge_by(server, tmp_path, concurrency=1, max_completion_tokens=4096).judge(unequal(40))
    assert len(server.requests) == 2


def test_with_both_options_a_reasoning_model_judges(server: ChatAPIStub, tmp_path: Path) -> None:
    server.fault_of = ReasoningStub(server)
    options: dict[str, Any] = {"max_completion_tokens": 4096, "temperature": "none"}
    judge = judge_by(server, tmp_path, **options)
    assert [outcome.score for outcome in judge.judge(unequal(9))] == scores(9)
    for request in server.requests:
        assert {key: value for key, value in request.items() if key != "messages"} == {
            "model": "m", "max_completion_tokens": 4096,
        }  # fmt: skip
    assert {"max_completion_tokens": 4096, "temperature": None}.items() <= judge.identity().items()
    assert "max_tokens" not in judge.identity()
    sent = len(server.requests)
    judge_by(server, tmp_path, max_completion_tokens=2048, temperature=None).judge(unequal(9))
    assert len(server.requests) == 2 * sent  # another limit is another question
    judge_by(server, tmp_path, **options).judge(unequal(9))
    assert len(server.requests) == 2 * sent


@pytest.mark.parametrize("where", ["text", "field"])
def test_what_is_thought_aloud_does_not_count(server: ChatAPIStub, tmp_path: Path, where: str) -> None:
    """In the text, with or without an opening tag (a chat template may have written it), or in a field of its own."""

    def answer(request: dict[str, Any]) -> tuple[Any, str]:
        letter = longer(request)[0]
        other = "AB".replace(letter, "")
        opening = "<think>" if letter == "A" else ""
        return f"{opening}Response {other} is better? No.\n</think>\n\n{letter}", "stop"

    server.answer = answer
    if where == "field":
        plain = server.respond

        def respond(request: dict[str, Any], key: str) -> Response:
            status, headers, body = plain(request, key)
            message = body["choices"][0]["message"]
            thought, _, message["content"] = message["content"].partition("</think>")
            message["reasoning_content"] = thought
            return status, headers, body

        server.respond = respond  # type: ignore[method-assign]
    judge = judge_by(server, tmp_path, max_completion_tokens=4096)
    assert [outcome.score for outcome in judge.judge(unequal(6))] == scores(6)


def test_verdicts_that_were_cut_before_they_named_an_answer_are_warned_of(
    server: ChatAPIStub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = lambda request: (None, "length")  # all tokens went into a field of its own
    with caplog.at_level(logging.WARNING, logger="evaluation"):
        outcomes = judge_by(server, tmp_path).judge(unequal(3))
    assert {outcome.score for outcome in outcomes} == {None}
    assert caplog.messages == [
        "judge: 4 of 4 verdicts of m were cut at --judge.max_tokens 8 before they named an answer; a model that thinks "
        "first needs some thousand: --judge.max_completion_tokens 4096"
    ]


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        (NO_MAX_TOKENS, "max_tokens"),
        (NO_TEMPERATURE, "temperature"),
        ({"message": "Unknown parameter: `seed`."}, "seed"),
        ({"message": "seed: Extra inputs; 'seed' is not supported", "param": None}, "seed"),
        (TOO_LONG, ""),
        ({"message": "'temperature' must be 2 or less", "param": "temperature"}, ""),
        ({"message": "Unsupported parameter: 'logprobs'", "param": "logprobs", "code": "unsupported_parameter"}, ""),
        ({"message": "This is too long."}, ""),
        (None, ""),
        ("Unsupported parameter: 'seed'", ""),
    ],
)
def test_an_error_about_a_parameter_is_told_from_one_about_a_prompt(body: Any, parameter: str) -> None:
    assert unsupported_parameter(body, SENT) == parameter


def test_one_of_the_two_limits_is_given() -> None:
    with pytest.raises(UserError, match=r"is sent in place of --judge.max_tokens. Give one"):
        make_config(JudgeOptions, model="m", max_tokens=9, max_completion_tokens=10).check()
    with pytest.raises(UserError, match=r"--judge.max_completion_tokens must be a whole number, 1 or more"):
        make_config(JudgeOptions, model="m", max_completion_tokens=0).check()
