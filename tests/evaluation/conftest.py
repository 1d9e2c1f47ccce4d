"""Fixtures that tests of the evaluation share."""

from collections.abc import Iterator

import pytest

from tests.support.chat_server import ChatAPIStub, chat_api_stub
from tests.support.judged import KEY, longer


@pytest.fixture
def api_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, no proxy, and short pauses."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("data.chat.client.FIRST_PAUSE", 0.005)
    monkeypatch.setattr("data.chat.client.LONGEST_PAUSE", 0.05)


@pytest.fixture
def server() -> Iterator[ChatAPIStub]:
    """A chat API that prefers the longer answer."""
    with chat_api_stub() as stub:
        stub.answer = longer
        yield stub
