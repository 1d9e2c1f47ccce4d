"""Where in a row the things lie that a task reads: `--columns prompt=instruction,completion=output`.

A place is a column, or a path into nested data: `answer.text` is the field `text` of column `answer`, and
`answers[].answer` the list of what `answer` is in each item of the list `answers`. A column that is itself called
`answer.text`, as in a flattened table, goes first; what is no path can only be a column, such as `answers[0]`, or
`turns[].answers[].text`, which goes into lists of lists.
"""

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.command.errors import UserError, did_you_mean

EACH = "[]"  # behind a name: of each item of the list that it is


class _Nowhere:
    """What stands where a path leads nowhere; null is a value."""

    def __repr__(self) -> str:
        return "(nothing)"


NOWHERE = _Nowhere()


@dataclass(frozen=True)
class Path:
    """A place in a row.

    Attributes:
        text: as it was written.
        steps: names, and EACH for all items of a list.
        sign: -1 where less is more (`-answers[].rank`), else 1.
    """

    text: str
    steps: tuple[str, ...]
    sign: int = 1

    @classmethod
    def of(cls, text: str, *, signed: bool = False) -> "Path":
        """The place that a text writes: a path, or the column of that name. Raises UserError if it writes nothing.

        Args:
            signed: whether a - before it says that less is more.
        """
        sign, plain = (-1, text[1:]) if signed and text.startswith("-") else (1, text)
        if not plain.strip():
            raise UserError(f"'{text}' is no place in a row. Write a column, or a path such as answers[].text.")
        steps: list[str] = []
        for part in plain.split("."):
            name = part.rstrip(EACH)
            lists = part[len(name) :]
            if not name or lists.replace(EACH, "") or "[" in name or "]" in name:
                return cls(text, (plain,), sign)
            steps += [name, *([EACH] * (len(lists) // len(EACH)))]
        # What lies in lists of lists no task reads: each row would be rejected for it.
        return cls(text, tuple(steps) if steps.count(EACH) < 2 else (plain,), sign)

    def column(self, columns: Container[str]) -> str:
        """The column that it begins in: one of this whole name, dots included, or of that of its first step."""
        whole = self.text.removeprefix("-") if self.sign < 0 else self.text
        return whole if whole in columns else self.steps[0]

    def find(self, row: Mapping[str, Any]) -> Any:
        """What lies there, a list for a path with []; NOWHERE if the path leads nowhere in this row."""
        column = self.column(row)
        return _find(row, self.steps if column == self.steps[0] else (column,))


def _find(value: Any, steps: Sequence[str]) -> Any:
    if not steps:
        return value
    first, rest = steps[0], steps[1:]
    if first == EACH:
        if not isinstance(value, list):
            return NOWHERE
        found = [_find(item, rest) for item in value]
        if found and all(part is NOWHERE for part in found):
            return NOWHERE
        return [None if part is NOWHERE else part for part in found]
    if not isinstance(value, Mapping) or first not in value:
        return NOWHERE
    return _find(value[first], rest)


def parse_columns(
    columns: Sequence[str], known: Collection[str], signed: Collection[str], task: str
) -> dict[str, Path]:
    """Parse ["prompt=instruction", "completion=answers[].text"] into name -> place.

    Args:
        known: names that can be given a place.
        signed: those of them whose place may begin with a -.
        task: its name, for messages.

    Raises:
        UserError: a name that is not known or that comes twice, or no place.
    """
    found: dict[str, Path] = {}
    for item in columns:
        name, equals, place = (part.strip() for part in item.partition("="))
        if not equals or not place:
            raise UserError(f"--columns '{item}' must read NAME=COLUMN, e.g. prompt=instruction.")
        if name not in known:
            raise UserError(
                f"--columns '{item}': task '{task}' reads no '{name}'.{did_you_mean(name, known)} It reads "
                f"{', '.join(known)}."
            )
        if name in found:
            raise UserError(f"--columns names '{name}' twice. Give it one column.")
        found[name] = Path.of(place, signed=name in signed)
    return found
