"""Options of a chat API, given as `--api.KEY VALUE` or `--judge.KEY VALUE`, checked before anything is asked."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from data.command.errors import UserError
from data.command.extras import require_package

OPENAI_URL = "https://api.openai.com/v1"
MOST = (1 << 63) - 1  # of any number: what servers and clocks take
MOST_CONCURRENCY = 10_000  # a task each
SHOWN = 40  # characters of a wrong value
# A name or an address of the net: letters, digits and signs that no URL gives a meaning; no part empty or too long.
HOST = re.compile(r"(?=.{1,253}\Z)[\w-]{1,63}(\.[\w-]{1,63})*\.?\Z|[0-9a-f.]*:[0-9a-f:.]*(%\w+)?\Z", re.IGNORECASE)


def check_chat_options(group: str, options: dict[str, Any]) -> None:
    """Check, in place, what every chat API needs: base_url, temperature, max_tokens, concurrency, timeout, retries.

    Raises:
        UserError: a value is out of range, or the client is not installed.
    """
    require_package("openai", f"--{group}.model")
    options["base_url"] = checked_url(group, options["base_url"])
    if options["temperature"] is not None:  # some models refuse any
        require_number(group, options, "temperature", 0)
    require_number(group, options, "max_tokens", 1, whole=True)
    require_number(group, options, "concurrency", 1, whole=True, most=MOST_CONCURRENCY)
    require_number(group, options, "timeout", 0.001)
    require_number(group, options, "retries", 0, whole=True)


def require_number(
    group: str, options: Mapping[str, Any], key: str, least: float, *, whole: bool = False, most: int = MOST
) -> None:
    """Raise UserError unless a value is a number from `least` to `most`."""
    value = options[key]
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        spoken = "a whole number" if whole else "a number"
        above = isinstance(value, int | float) and value > most
        bound = f"{most} or less" if above else f"{least} or more"
        raise UserError(f"--{group}.{key} must be {spoken}, {bound}, got {_shown(value)}.")


def _shown(value: Any) -> str:
    """A wrong value in a line's length."""
    huge = isinstance(value, int) and abs(value) > MOST  # which Python may refuse to spell
    return "a huge number" if huge else repr(value)[:SHOWN]


def checked_url(group: str, url: Any) -> str:
    """The address as the client uses it, without a slash at its end; user and password stay, see `public_url`.

    Raises:
        UserError: no server can have this address. The message does not repeat it, as it may hold a password.
    """
    if not _is_address(url if isinstance(url, str) else ""):
        raise UserError(
            f"--{group}.base_url must be an address such as http://localhost:8000/v1, a port from 1 to 65535, with "
            "nothing behind it. In a password write / as %2F and @ as %40."
        )
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{quote(user, safe=':%')}{at}{host}").geturl().rstrip("/")


def public_url(url: str) -> str:
    """An address without user and password, which have no place in a manifest, a report or an error."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _is_address(url: str) -> bool:
    if not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # no port, or no IPv6 address
        return False
    behind = parts.query or parts.fragment or "@" in parts.path or "?" in url or "#" in url
    return parts.scheme in ("http", "https") and bool(HOST.match(host)) and port != 0 and not behind
