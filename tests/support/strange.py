"""JSON texts that somebody edited: values that nobody expects, at any place."""

import copy
import random
from collections.abc import Iterator
from typing import Any

NESTED: Any = "x"
for _ in range(300):
    NESTED = [NESTED]
STRANGE: list[Any] = [
    *(None, True, 0, -1, 1 << 62, 10**30, 0.5, 1e308, float("nan"), "", "x", "\ud800", "\x1b[2J", "\u202e"),
    *([], {}, [None], {"": None}, {"count": -1}, NESTED, "../../etc/passwd", "a" * 5000),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON text."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def edited(value: dict[str, Any], draw: random.Random) -> Any:
    """A copy with one value replaced, removed or added."""
    changed = {"": copy.deepcopy(value)}
    *outer, last = "", *draw.choice(list(places(value)))
    node: Any = changed
    for key in outer:
        node = node[key]
    kind = draw.choice(["replace", "replace", "replace", "remove", "add"])
    if kind == "remove" and last != "":
        del node[last]
    elif kind == "add" and isinstance(node[last], dict):
        node[last][draw.choice(["new", "", "\ud800", "\x1b[2J"])] = draw.choice(STRANGE)
    else:
        node[last] = draw.choice(STRANGE)
    return changed[""]
