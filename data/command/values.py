"""A flag's text or a YAML value as a value of a field's type."""

import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from data.command.errors import UserError

SCALARS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
LISTS = {int: "a list of whole numbers", float: "a list of numbers", str: "a list of texts"}
# Beyond are no seeds, sizes or counts of anything that we call.
LARGEST = 2**64 - 1


def plain_type(hint: Any) -> Any:
    """The type of an optional field's value where it has one; of any other field its type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(h for h in typing.get_args(hint) if h is not type(None))
    return hint


def is_dict(hint: Any) -> bool:
    """Whether a type is that of a dict."""
    return hint is dict or typing.get_origin(hint) is dict


def is_list(hint: Any) -> bool:
    """Whether a type is that of a list, or of a list or nothing."""
    hint = plain_type(hint)
    return hint is list or typing.get_origin(hint) is list


def inner_type(hint: Any) -> Any:
    """The type of a list's items."""
    return next(iter(typing.get_args(plain_type(hint))), str)


def split_items(text: str) -> list[str]:
    """The items of a list that is written with commas, without white space around them; no empty ones."""
    return [item.strip() for item in text.split(",") if item.strip()]


def convert(value: Any, hint: Any, key: str, where: str) -> Any:
    """A YAML value or a flag's text as a value of a field's type.

    Args:
        hint: the field's type: str, int, float, bool, dict, a list of scalars; any of them or None.
        key, where: for messages, e.g. "limit" and "in job.yaml".

    Raises:
        UserError: the value is not of that type.
    """
    plain = plain_type(hint)
    if plain is not hint and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    if is_dict(plain):
        if not isinstance(value, dict):
            raise needs_mapping(key, where)
        require_finite(value, key, where)
        return dict(value)
    if is_list(plain):
        inner = inner_type(plain)
        items = split_items(value) if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        try:
            return [_scalar(item, inner) for item in items]
        except ValueError:
            raise UserError(f"'{key}' {where} must be {LISTS[inner]}, got {value!r}.") from None
    try:
        return _scalar(value, plain)
    except ValueError:
        raise UserError(f"'{key}' {where} must be {SCALARS[plain]}, got {value!r}.") from None


def needs_mapping(key: str, where: str) -> UserError:
    """The error of a value that is given for a whole group of keys."""
    return UserError(f"'{key}' {where} must be a mapping; on the command line write --{key}.NAME VALUE.")


def require_finite(value: Any, key: str, where: str) -> None:
    """Raise UserError for a number, on its own or within lists and mappings, that is not finite or beyond 64 bits."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            require_finite(inner, f"{key}.{name}", where)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            require_finite(inner, key, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"'{key}' {where} must be a finite number, got {value!r}.")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"'{key}' {where} is beyond the whole numbers of 64 bits.")


def _scalar(value: Any, kind: type) -> Any:
    """A value as text, truth value or finite number. Raises ValueError if it is none."""
    if value is None or isinstance(value, (dict, list, tuple)):
        raise ValueError
    if kind is str:
        if isinstance(value, (bool, int, float)):  # YAML has read a number: 007 and 1e3 are no longer what was written
            raise ValueError
        return str(value)
    if kind is bool:
        text = str(value).lower()
        if text not in ("true", "false"):
            raise ValueError
        return text == "true"
    if isinstance(value, bool):
        raise ValueError
    try:
        number = float(value)
    except (TypeError, OverflowError):  # a date of YAML; a whole number of hundreds of digits
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    if kind is float:
        return number
    if not number.is_integer():
        raise ValueError
    try:
        whole = int(value)  # exact, where a float would round a long seed
    except ValueError:  # "1e3"
        whole = int(number)
    if abs(whole) > LARGEST:
        raise ValueError
    return whole


def require_positive(options: Any, *names: str) -> None:
    """Raise UserError for the first of these options that is below 1; None, for what is not given, is none."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}.")


def require_seed(seed: int) -> None:
    """Raise UserError for a seed that NumPy, and with it vLLM and MAUVE, does not take."""
    if not 0 <= seed < 1 << 32:
        raise UserError(f"--seed must be from 0 to 2^32 - 1, got {seed}.")
