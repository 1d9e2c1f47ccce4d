"""What servers may do to a chat client: large, endless and packed answers, strange strings, addresses that are none."""

import asyncio
import gzip
import json
import time
import tracemalloc
import zlib
from base64 import b64encode
from typing import Any

import pytest

from data.chat import limits
from data.chat.client import ChatAPI
from data.chat.limits import TooLarge, unpacked
from data.chat.settings import checked_url, public_url, require_number
from data.command.errors import UserError
from tests.support.chat_server import HALF, NOTHING, ChatAPIStub, Fault, chat_api_stub

SMALL = 100_000


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret-of-the-tests")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(limits, "LARGEST_ANSWER", SMALL)


def asked(stub: ChatAPIStub, url: str = "", **options: Any) -> Any:
    """The answer to one prompt."""
    port = stub.server_address[1]

    async def ask() -> Any:
        chosen = {"temperature": 0.0, "max_tokens": 8, "concurrency": 1, "timeout": 20.0, "retries": 0, **options}
        async with ChatAPI("m", url or f"http://127.0.0.1:{port}/v1", **chosen) as api:
            return (await api.ask(["Who?"], [1]))[0]

    return asyncio.run(ask())


def refusal(stub: ChatAPIStub, fault: Fault) -> str:
    stub.faults = [fault]
    with pytest.raises(UserError) as caught:
        asked(stub)
    return str(caught.value)


def body(text: str, reason: Any = "stop") -> str:
    """An answer as JSON, with escapes."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})


def test_an_answer_is_refused_that_is_too_large() -> None:
    with chat_api_stub() as stub:
        assert asked(stub).text == "Answer 1."
        assert "gave an answer that cannot be read: it is larger than 0 MiB" in refusal(
            stub, (200, {}, body("x" * SMALL))
        )


def test_an_answer_is_unpacked_no_further_than_it_may_be_large() -> None:
    packed = zlib.compress(b"x" * 20_000_000)
    assert len(packed) < SMALL
    with chat_api_stub() as stub:
        assert "larger than 0 MiB when unpacked" in refusal(stub, (200, {"Content-Encoding": "deflate"}, packed))
    tracemalloc.start()
    with pytest.raises(TooLarge, match="when unpacked"):
        unpacked(packed, "deflate")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * SMALL


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "x" * 1000])
def test_only_what_was_asked_for_is_unpacked(encoding: str) -> None:
    with chat_api_stub() as stub:
        said = refusal(stub, (200, {"Content-Encoding": encoding}, "x"))
    assert "though only gzip, deflate were asked for" in said
    assert len(said) < 400


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, lambda c: zlib.compress(c)[2:-4]])
def test_packed_answers_are_read(pack: Any) -> None:
    content = body("yes").encode()
    packed, encoding = pack(content), "gzip" if pack is gzip.compress else "deflate"
    assert unpacked(packed, encoding) == content
    with chat_api_stub() as stub:
        stub.faults = [(200, {"Content-Encoding": encoding}, packed)]
        assert asked(stub).text == "yes"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("packed", [b"not packed at all \xff\xff", b"\x07", b"\x1f\x8b\x08\x00\xff"])
def test_a_damaged_packed_answer_is_one_line(packed: bytes, encoding: str) -> None:
    with chat_api_stub() as stub:
        said = refusal(stub, (200, {"Content-Encoding": encoding}, packed))
    assert "gave an answer that cannot be read: " in said
    if packed == b"not packed at all \xff\xff":
        with pytest.raises(ValueError, match=f"it is no {encoding}"):
            unpacked(packed, encoding)


@pytest.mark.parametrize("reason", ["\ud800", {"deep": ["\ud800"]}, "x" * 10_000, None])
def test_every_string_of_a_server_can_be_kept(reason: Any) -> None:
    with chat_api_stub() as stub:
        stub.faults = [(200, {}, body("half \udc00 pair", reason))]
        answer = asked(stub)
    assert answer.text == "half ? pair"
    assert len(answer.finish_reason.encode()) <= 200


def test_a_refusal_can_be_kept() -> None:
    with chat_api_stub() as stub:
        stub.faults = [(400, {}, '{"error": {"message": "no \\ud800\\u001b[2J"}}')]
        assert asked(stub).refusal.encode() == b"no ?\x1b[2J"


def test_pauses_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.chat.client.FIRST_PAUSE", 0.0)

    async def pause() -> None:
        async with ChatAPI(
            "m", "http://h/v1", temperature=None, max_tokens=1, concurrency=1, timeout=1.0, retries=10**6
        ) as api:
            for tries in (0, 1100, 10**6):
                await api._pause_for_server(tries)

    started = time.monotonic()
    asyncio.run(pause())
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("value", [1 << 63, 10**5000, float("inf")], ids=["2**63", "10**5000", "inf"])
def test_numbers_that_no_clock_or_server_takes_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"--judge.timeout must be a number, 9223372036854775807 or less, got \w"):
        require_number("judge", {"timeout": value}, "timeout", 1)


@pytest.mark.parametrize("value", [float("nan"), "1", True, None, 0])
def test_an_api_option_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"--judge.timeout must be a number, 1 or more, got"):
        require_number("judge", {"timeout": value}, "timeout", 1)


@pytest.mark.parametrize(
    "url",
    [
        "http://h:99999/v1", "http://h:0/v1", "http://h:-1/v1", "http://h:abc/v1", "http://a b/v1", "http://h\x1b/v1",
        "http://[::1/v1", "http://..../v1", "http://a..b/v1", f"http://{'a' * 64}/v1", f"http://{'a.' * 200}/v1",
        "http://user:pa/ss@h/v1", "http://user:80/ss@h/v1", "ftp://h/v1", "http://h/v1?", "http://h/v1#",
        "http:///v1", 7,
        "http://h\u202e/v1", "http://h\n/v1",
    ],
)  # fmt: skip
def test_an_address_that_can_be_none_is_one_line(url: Any) -> None:
    with pytest.raises(UserError, match=r"--judge.base_url must be an address such as http://localhost") as caught:
        checked_url("judge", url)
    assert "ss@" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("http://user:p@ss@h:80/v1/", "http://h:80/v1"),
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://my_server-1.example:8000", "http://my_server-1.example:8000"),
        ("http://bücher.example/v1", "http://bücher.example/v1"),
        ("http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1"),
    ],
)
def test_an_address_is_shown_without_user_and_password(url: str, public: str) -> None:
    assert public_url(checked_url("judge", url)) == public


def test_user_and_password_reach_the_server_and_no_error() -> None:
    with chat_api_stub() as stub:
        port = stub.server_address[1]
        url = checked_url("judge", f"http://me:a%2Fsecret@127.0.0.1:{port}/v1")
        asked(stub, url)
        stub.faults = [(500, {}, "down")]
        with pytest.raises(UserError) as caught:
            asked(stub, url)
    assert "secret" not in str(caught.value)
    assert stub.keys == {f"Basic {b64encode(b'me:a/secret').decode()}"}


def test_a_proxy_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://proxy")
    with chat_api_stub() as stub, pytest.raises(UserError, match="no client can be made for http://h/v1"):
        asked(stub, "http://h/v1")


@pytest.mark.parametrize("message", ["hi", 5, [], {"content": 5}, {"content": ["a"]}, {"content": {"text": "a"}}, None])
def test_a_message_without_a_text_is_no_completion(message: Any) -> None:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    with chat_api_stub() as stub:
        assert "is no chat completion. Check --api.base_url" in refusal(stub, (200, {}, {"choices": [choice]}))
        stub.faults = [(200, {}, {"choices": [{**choice, "message": {"content": None}}]})]
        assert asked(stub).text == ""


def test_an_answer_far_above_the_limit_of_tokens_is_cut() -> None:
    with chat_api_stub() as stub:
        stub.faults = [(200, {}, body("x" * (8 * 256))), (200, {}, body("x" * (8 * 256 + 1)))]
        whole, cut = asked(stub), asked(stub)
    assert (len(whole.text), whole.finish_reason) == (8 * 256, "stop")
    assert (len(cut.text), cut.finish_reason) == (8 * 256, "length")


def test_a_server_that_closes_is_not_called_out_of_reach() -> None:
    with chat_api_stub() as stub:
        for fault in (HALF, NOTHING):
            assert "closes the connection before its answer is whole, after 0 retries. See to" in refusal(stub, fault)
        url = stub.url
    with pytest.raises(UserError, match="cannot be reached after 0 retries"):
        asked(stub, url)


@pytest.mark.parametrize("key", ["none", "A", "dummy"])
def test_a_short_key_is_not_looked_for_in_answers(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with chat_api_stub() as stub:
        stub.faults = [(200, {}, body(f"A dummy says none, {key}."))]
        assert asked(stub).text == f"A dummy says none, {key}."


def test_a_short_password_that_a_server_repeats_is_in_no_error() -> None:
    with chat_api_stub() as stub:
        stub.faults = [(400, {}, {"error": {"message": "bad login joe:hunter2, hunter2 of joe:x"}})]
        url = stub.url.replace("//", "//joe:hunter2@")
        assert asked(stub, url).refusal == "bad login ***, *** of joe:x"
        stub.faults = [(400, {}, {"error": {"message": "bad login joe:ab"}})]
        assert asked(stub, stub.url.replace("//", "//joe:ab@")).refusal == "bad login ***"


def test_a_redirect_is_called_one() -> None:
    with chat_api_stub() as stub:
        assert "redirects to another address (307). Give that one as --api.base_url." in refusal(
            stub, (307, {"Location": "http://127.0.0.1:1/v1"}, "")
        )
