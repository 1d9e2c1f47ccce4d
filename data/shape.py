"""What JSON that others wrote must look like: a shape, and the first place where a value has another one.

A shape is a type (`str`, `bool`, `int`, `float`, `dict`), a dict of the keys that a mapping must have with their shapes
(other keys are passed over), or one of the classes below.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.command.cleaning import storable

DEEPEST = 64  # levels of nesting; what writes and copies a value recurses as deep
MOST = (1 << 63) - 1
WORDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", dict: "an object"}


@dataclass(frozen=True)
class Count:
    """A whole number from 0 on."""

    most: int = MOST


@dataclass(frozen=True)
class ListOf:
    """A list whose items have one shape."""

    shape: Any
    least: int = 0


@dataclass(frozen=True)
class Each:
    """An object with any keys, whose values have one shape."""

    shape: Any


@dataclass(frozen=True)
class Maybe:
    """A value that may be null, or whose key may be missing."""

    shape: Any


@dataclass(frozen=True)
class IfThere:
    """A value whose key may be missing."""

    shape: Any


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError, with what is wrong, also for one that is nested too deeply."""
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("no text in UTF-8") from None
    if _deeper(value, DEEPEST):
        raise ValueError("nested too deeply")
    return value


def parse_shaped(content: bytes | str, shape: Any) -> Any:
    """The value of a JSON text. Raises ValueError, with what is wrong, also for one that has another shape."""
    value = parse_json(content)
    if wrong := misfit(value, shape):
        raise ValueError(wrong)
    return value


def as_read(value: Any, default: Callable[[Any], Any] | None = None) -> Any:
    """A value as it reads back from JSON: tuples as lists, keys as text, other things as `default` says."""
    return json.loads(json.dumps(value, default=default))


def misfit(value: Any, shape: Any, path: str = "") -> str:
    """Where a value has not the shape, and what is there, in words; "" where it has.

    Args:
        path: of the value in what it is a part of, e.g. "job.model".
    """
    if isinstance(shape, Maybe):
        return "" if value is None else misfit(value, shape.shape, path)
    if isinstance(shape, IfThere):
        return misfit(value, shape.shape, path)
    if isinstance(shape, Count):
        fits = type(value) is int and 0 <= value <= shape.most
        bound = "" if shape.most == MOST else f" to {shape.most}"
        return "" if fits else _not(value, path, f"a whole number from 0 on{bound}")
    if isinstance(shape, ListOf):
        if not isinstance(value, list) or len(value) < shape.least:
            return _not(value, path, "a list" + f" of {shape.least} or more" * (shape.least > 0))
        return _first(misfit(item, shape.shape, f"{path}[{index}]") for index, item in enumerate(value))
    if isinstance(shape, Each):
        if not isinstance(value, dict):
            return _not(value, path, WORDS[dict])
        keys = (misfit(key, str, f"a key of {path}") for key in value)
        return _first(keys) or _first(misfit(item, shape.shape, _at(path, key)) for key, item in value.items())
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return _not(value, path, WORDS[dict])
        lacking = [key for key, inner in shape.items() if key not in value and not isinstance(inner, Maybe | IfThere)]
        if lacking:
            return f"{_at(path, lacking[0])} is missing"
        return _first(misfit(value[key], inner, _at(path, key)) for key, inner in shape.items() if key in value)
    if shape is str:
        return "" if isinstance(value, str) and storable(value) == value else _not(value, path, WORDS[str])
    kinds = (int, float) if shape is float else shape
    fits = isinstance(value, kinds) and (shape is bool or not isinstance(value, bool))
    fits = fits and (shape is not float or abs(value) <= MOST)  # nan and what is infinite are no numbers either
    return "" if fits else _not(value, path, WORDS[shape])


def _first(found: Any) -> str:
    return next(filter(None, found), "")


def _at(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _not(value: Any, path: str, expected: str) -> str:
    spoken = json.dumps(value)
    return f"{path or 'it'} is {spoken if len(spoken) <= 60 else spoken[:60] + ' ...'}, not {expected}"


def _deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(inner) and (levels == 0 or any(_deeper(item, levels - 1) for item in inner))
