"""What must not get into manifests and logs: keys, passwords, and the home directory with its user's name."""

import os
import re
from pathlib import Path
from typing import Any

HIDDEN = "***"
SECRET_OPTION = re.compile(
    r"(.*[_-])?(api[_-]?key|access[_-]?key|token|secret|password|passwd|credentials?|auth|authorization|cookie)",
    re.IGNORECASE,
)
# Options of tokenizers, whose names end alike.
NO_SECRETS = re.compile(r"(bos|eos|pad|unk|sep|cls|mask)_token")
SECRET_VARIABLE = re.compile(r".*(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)", re.IGNORECASE)
SHORTEST_SECRET = 8  # characters; a shorter value would be found in innocent text
TILDE = re.compile(r"(?<![\w.~-])~(?![\w.~-])")
# What an Authorization header holds, in any text; credentials have a digit, which keeps prose out.
HEADER = re.compile(
    r"""(\bauthorization['"]?\s*[:=]\s*['"]?(?:\w+\s+)?|\b(?:Bearer|Basic)\s+)(?=\S*\d)[\w.~+/=-]{8,}""", re.IGNORECASE
)
USERINFO = re.compile(r"(?<=://)[^/\s]+@")


def without_secrets(value: Any) -> Any:
    """A JSON-like value for a manifest: texts under keys such as `hf_token` and what an Authorization header holds
    hidden, URLs without user and password, the home directory as ~."""
    if isinstance(value, dict):
        return {key: HIDDEN if _is_secret(key, item) else without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return _without_home(_without_headers(USERINFO.sub("", value))) if isinstance(value, str) else value


def usable_again(value: Any) -> Any:
    """A value of a manifest as it can be used: ~ as the home directory, hidden entries left out."""
    if isinstance(value, dict):
        return {key: usable_again(item) for key, item in value.items() if item != HIDDEN}
    if isinstance(value, list):
        return [usable_again(item) for item in value]
    return TILDE.sub(lambda _: str(Path.home()), value) if isinstance(value, str) else value


def holds_hidden(value: Any) -> bool:
    """Whether a manifest hides the value or a part of it."""
    if isinstance(value, dict | list):
        return any(holds_hidden(item) for item in (value.values() if isinstance(value, dict) else value))
    return value == HIDDEN


def is_secret_variable(name: str, value: str) -> bool:
    """Whether an environment variable is a key by its name, or a URL with a password."""
    return bool(SECRET_VARIABLE.fullmatch(name) or USERINFO.search(value))


def scrub(text: str) -> str:
    """A line for a log: values of environment variables such as OPENAI_API_KEY hidden, the home directory as ~."""
    secrets = [value for name, value in os.environ.items() if SECRET_VARIABLE.fullmatch(name)]
    for secret in sorted(secrets, key=len, reverse=True):  # one may begin with another
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    return _without_home(_without_headers(USERINFO.sub("", text)))


def _is_secret(key: Any, value: Any) -> bool:
    name = str(key)
    return isinstance(value, str) and bool(SECRET_OPTION.fullmatch(name)) and not NO_SECRETS.fullmatch(name)


def _without_headers(text: str) -> str:
    return HEADER.sub(rf"\1{HIDDEN}", text)


def _without_home(text: str) -> str:
    home = str(Path.home())
    return re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text) if home not in ("", "/") else text
