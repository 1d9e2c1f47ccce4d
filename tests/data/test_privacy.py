"""No key and no home path in manifests or logs."""

import json
import logging
import sys
from pathlib import Path

import pytest

from data.command.errors import UserError, exit_on_user_error
from data.command.log import JSONFormatter, ScrubbingFormatter
from data.command.privacy import holds_hidden, scrub, usable_again, without_secrets


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    monkeypatch.setenv("SHORT_KEY", "key")


def test_manifests_hold_no_secret_and_no_home() -> None:
    engine = {
        "hf_token": "hf_abc", "api-key": "k", "AWS_SECRET_ACCESS_KEY": "s", "max_tokens": 5, "eos_token": "</s>",
        "tokenizer": "/home/ada/tokenizer", "nested": [{"password": "p", "token": 7}], "seed": None,
    }  # fmt: skip
    assert without_secrets({"engine": engine, "name": "/home/ada", "url": "https://me:p@w@host/v1"}) == {
        "engine": {
            "hf_token": "***", "api-key": "***", "AWS_SECRET_ACCESS_KEY": "***", "max_tokens": 5, "eos_token": "</s>",
            "tokenizer": "~/tokenizer", "nested": [{"password": "***", "token": 7}], "seed": None,
        },
        "name": "~",
        "url": "https://host/v1",
    }  # fmt: skip


def test_options_from_a_manifest_can_be_used_again_but_for_hidden_values() -> None:
    engine = {
        "hf_token": "hf_abc", "eos_token": "</s>", "seed": None,
        "tokenizer": "/home/ada/tokenizer", "speculative_config": {"model": "/home/ada", "token": "t", "n": [1, "~x"]},
    }  # fmt: skip
    recorded = without_secrets(engine)
    assert usable_again(recorded) == {
        "eos_token": "</s>", "seed": None,
        "tokenizer": "/home/ada/tokenizer", "speculative_config": {"model": "/home/ada", "n": [1, "~x"]},
    }  # fmt: skip
    assert [key for key, value in recorded.items() if holds_hidden(value)] == ["hf_token", "speculative_config"]


def test_homes_of_others_and_names_that_begin_alike_stay() -> None:
    assert without_secrets("/home/adam/x /home/ada-b /data/home/ada/x") == "/home/adam/x /home/ada-b /data/home/ada/x"


def test_log_lines_hold_no_secret_and_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGER_KEY", "sk-0123456789-and-more")
    assert scrub("sk-0123456789-and-more") == "***"
    assert scrub("cannot write /home/ada/set with sk-0123456789: key") == "cannot write ~/set with ***: key"
    record = logging.LogRecord("x", logging.INFO, "f", 1, "key %s in %s", ("sk-0123456789", Path("/home/ada/x")), None)
    assert ScrubbingFormatter("%(message)s").format(record) == "key *** in ~/x"
    line = JSONFormatter().format(record)
    assert json.loads(line) == {
        "time": round(record.created, 3), "level": "INFO", "logger": "x", "message": "key *** in ~/x",
    }  # fmt: skip
    try:
        raise OSError("no '/home/ada/x'")
    except OSError:
        record.exc_info = sys.exc_info()
    line = JSONFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("OSError: no '~/x'")


def test_errors_hold_no_secret_and_no_home(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_on_user_error
    def main(argv: list[str] | None = None) -> None:
        raise UserError("'/home/ada/x' is refused for sk-0123456789")

    assert main([]) == 2
    assert capsys.readouterr().err == "error: '~/x' is refused for ***\n"


def test_what_an_authorization_header_holds_is_hidden_wherever_it_stands() -> None:
    headers = {"Authorization": "Bearer abc", "Accept": "Basic things", "X-Other": ["Bearer sk-12345678", "json"]}
    engine = {"headers": headers, "auth": "me:pass", "cookie": "c=1", "author": "Ada", "text": "a bearer of news"}
    assert without_secrets(engine) == {
        "headers": {"Authorization": "***", "Accept": "Basic things", "X-Other": ["Bearer ***", "json"]},
        "auth": "***", "cookie": "***", "author": "Ada", "text": "a bearer of news",
    }  # fmt: skip
    assert scrub("sent {'Authorization': 'Bearer abc-12345', 'a': 1}") == "sent {'Authorization': 'Bearer ***', 'a': 1}"
    assert scrub("got authorization: Basic bWU6cGFzcw== and") == "got authorization: Basic *** and"
    assert scrub("header Bearer sk-123456789 is unknown; authorization=Ab1Cd2Ef3") == (
        "header Bearer *** is unknown; authorization=***"
    )
    for prose in (
        "The bearer of 2 news. Basic English",
        "Authorization: required by law",
        "Token counts",
        "basic answers",
    ):
        assert scrub(prose) == without_secrets(prose) == prose
