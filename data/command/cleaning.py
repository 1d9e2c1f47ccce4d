"""Texts of others, cleaned: as they can be kept, and as a terminal may show them."""

import re
from typing import Any

SHOWN = 200
# What is shown as its escape: control characters but for line feed and tab, line separators, lone halves of surrogate
# pairs, and what turns the direction of writing, so that a text looks like another one.
HIDDEN_OR_TURNING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def storable(text: str) -> str:
    """A text that UTF-8, and so Parquet, SQLite and a tokenizer, can hold: JSON can hold half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def shown(value: Any) -> str:
    """The beginning of anything as valid text."""
    return storable(str(value)[:SHOWN])


def printable(text: str) -> str:
    """A text that cannot move a terminal's cursor, change its colours or the order of its letters."""
    return HIDDEN_OR_TURNING.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)
