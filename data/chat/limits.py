"""How large a server's answer may be: counted as it comes, and again as it is unpacked."""

import importlib
import zlib
from contextlib import suppress
from typing import Any

LARGEST_ANSWER = 16 << 20  # bytes, of a body as it comes and as it is unpacked; a chat answer is a few kilobytes
# What we ask for, and unpack ourselves: zlib stops where it is told to.
ENCODINGS = "gzip, deflate"
AUTODETECT = 32 + zlib.MAX_WBITS  # gzip or zlib, by its first bytes
RAW = -zlib.MAX_WBITS  # what some servers mean by deflate


class TooLarge(ValueError):
    """An answer that is larger than LARGEST_ANSWER, or packed in a way that nobody asked for."""


async def bound_answer(response: Any) -> None:
    """Read a response's body into memory, unpacked; a hook of the HTTP client, which finds the body there.

    Raises:
        TooLarge: the answer is larger than LARGEST_ANSWER, or packed; nothing more is read then.
    """
    body = bytearray()
    async for chunk in response.stream:
        body += chunk
        if len(body) > LARGEST_ANSWER:
            raise TooLarge(f"it is larger than {LARGEST_ANSWER >> 20} MiB")
    await response.stream.aclose()
    content = bytes(body)
    for encoding in reversed(response.headers.get("content-encoding", "").split(",")):
        content = unpacked(content, encoding.strip().lower())
    response.headers.pop("content-encoding", None)
    response.stream = _stream_of(response, content)


def unpacked(content: bytes, encoding: str) -> bytes:
    """A body without its content encoding. Raises TooLarge, and ValueError for one that is damaged."""
    if encoding in ("", "identity"):
        return content
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise TooLarge(f"it is packed as '{encoding[:20]}', though only {ENCODINGS} were asked for")
    for form in (AUTODETECT, RAW) if encoding == "deflate" else (AUTODETECT,):
        with suppress(zlib.error):
            found = zlib.decompressobj(form).decompress(content, LARGEST_ANSWER + 1)
            break
    else:
        raise ValueError(f"it is no {encoding}")
    if len(found) > LARGEST_ANSWER:
        raise TooLarge(f"it is larger than {LARGEST_ANSWER >> 20} MiB when unpacked")
    return found


def _stream_of(response: Any, content: bytes) -> Any:
    """A body as the stream of the client's own library, httpx or its successor."""
    library = importlib.import_module(type(response).__module__.partition(".")[0])
    return library.ByteStream(content)
