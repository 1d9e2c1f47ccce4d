"""JSON Lines, read as lines of text and parsed one by one.

So a broken line or a column of mixed types costs that line, not the file. The lines travel as Latin-1, which holds any
bytes, and are decoded one by one for the same reason.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.command.errors import first_line
from data.shape import parse_json

BYTES = "latin-1"


@dataclass(frozen=True)
class Unreadable:
    """What should have been a row and is none.

    Attributes:
        text: of the line, or which row it is.
        reason, detail: as in `data.schema.Reject`.
    """

    text: str
    reason: str
    detail: str


def parse_line(line: str) -> Any:
    """The row in a line of JSON that was read as Latin-1: a dict, an Unreadable, or None if it is blank."""
    if not line.strip():
        return None
    try:
        text = line.encode(BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Unreadable(line, "not UTF-8", error.reason)
    try:
        row = parse_json(text)
    except ValueError as error:  # also a number of too many digits
        return Unreadable(text, "not JSON", first_line(error))
    return row if isinstance(row, dict) else Unreadable(text, "not a JSON object", f"it is {type(row).__name__}")


def starts_with_an_object(path: Path) -> bool:
    """Whether the first line that is not blank is a JSON object of its own: JSON Lines under the name .json."""
    with path.open(encoding=BYTES) as lines:
        return isinstance(next((row for row in map(parse_line, lines) if row is not None), None), dict)
