"""Tables that fit the width they are shown in: columns that do not fit come in a table below."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

BETWEEN = 3  # columns of the terminal between two of a table
EDGES = 2


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its heading.
        cells: from top to bottom.
        right: whether its cells end at one edge, as numbers do.
    """

    heading: str
    cells: Sequence[str]
    right: bool = True

    @property
    def width(self) -> int:
        """Columns of the terminal that it takes."""
        return max(map(len, (self.heading, *self.cells)))


def tables(title: str | None, first: Sequence[Column], others: Sequence[Column], width: int) -> "list[Table]":
    """One table, or several that each hold the first columns and as many of the others as fit.

    Args:
        width: columns of the terminal.
    """
    parts: list[list[Column]] = [[]]
    for column in others:
        if parts[-1] and _width([*first, *parts[-1], column]) > width:
            parts.append([])
        parts[-1].append(column)
    return [_table(None if number else title, [*first, *part]) for number, part in enumerate(parts)]


def _width(columns: Sequence[Column]) -> int:
    return EDGES + sum(column.width for column in columns) + BETWEEN * (len(columns) - 1)


def _table(title: str | None, columns: Sequence[Column]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.heading, justify="right" if column.right else "left", no_wrap=True)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table
