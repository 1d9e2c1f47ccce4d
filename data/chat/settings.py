"""Options of a chat API, given as `--api.KEY VALUE` or `--judge.KEY VALUE`, checked before anything is asked."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from data.command.errors import UserError

OPENAI_URL = "https://api.openai.com/v1"


def check_chat_options(group: str, options: dict[str, Any]) -> None:
    """Check, in place, what every chat API needs: base_url, temperature, max_tokens, concurrency, timeout, retries.

    Raises:
        UserError: a value is out of range.
    """
    options["base_url"] = checked_url(group, options["base_url"])
    if options["temperature"] is not None:  # some models refuse any
        require_number(group, options, "temperature", 0)
    require_number(group, options, "max_tokens", 1, whole=True)
    require_number(group, options, "concurrency", 1, whole=True)
    require_number(group, options, "timeout", 0.001)
    require_number(group, options, "retries", 0, whole=True)


def require_number(group: str, options: Mapping[str, Any], key: str, least: float, *, whole: bool = False) -> None:
    """Raise UserError unless a value is a finite number, `least` or more."""
    value = options[key]
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < float("inf"):
        spoken = "a whole number" if whole else "a number"
        raise UserError(f"--{group}.{key} must be {spoken}, {least} or more, got {value!r}.")


def checked_url(group: str, url: Any) -> str:
    """The address without user and password, which have no place in a manifest, and without a slash at its end."""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UserError(
            f"--{group}.base_url must be an address such as http://localhost:8000/v1, with nothing behind it."
        )
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
