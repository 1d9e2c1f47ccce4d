"""Tables that fit the width they are shown in: columns that do not fit come in a table below, under the same labels."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from data.command.cleaning import printable

if TYPE_CHECKING:
    from rich.table import Table

BETWEEN = 3  # columns of the terminal between two of a table
EDGES = 2
NARROW = 16  # a heading is folded to this, where its cells and its words are no wider


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
        return max(len(line) for text in (self.heading, *self.cells) for line in text.split("\n"))


def tables(title: str | None, first: Sequence[Column], others: Sequence[Column], width: int) -> "list[Table]":
    """One table, or several that each hold the first columns and as many of the others as fit.

    Nothing is left out or cut: headings and labels that are too long are folded.

    Args:
        first: labels of the rows.
        width: columns of the terminal.
    """
    labels = _labels(first, width)
    left = max(NARROW, width - _width(labels) - BETWEEN)
    parts: list[list[Column]] = [[]]
    for column in (_narrow(column, left) for column in others):
        if parts[-1] and _width([*labels, *parts[-1], column]) > width:
            parts.append([])
        parts[-1].append(column)
    return [_table(None if number else title, [*labels, *part]) for number, part in enumerate(parts)]


def as_text(first: Sequence[Column], others: Sequence[Column], width: int) -> str:
    """The tables as plain text, one below the other."""
    from io import StringIO

    from rich.console import Console

    made = StringIO()
    # Of texts as they are: no markup, no emoji; what could steer a terminal is spelled out before widths are counted.
    console = Console(file=made, width=10_000, color_system=None, highlight=False, markup=False, emoji=False)
    blocks = []
    for table in tables(None, [*map(_clean, first)], [*map(_clean, others)], width):
        made.seek(0)
        made.truncate()
        console.print(table)
        blocks.append("\n".join(line.rstrip() for line in made.getvalue().strip("\n").splitlines()).strip("\n"))
    return "\n\n".join(blocks)


def _labels(first: Sequence[Column], width: int) -> list[Column]:
    """The labels, folded to half of the width where they take more; the wider ones give way first."""
    labels = [_narrow(column, width) for column in first]
    room = width // 2 - EDGES - BETWEEN * (len(labels) - 1)
    most: dict[int, int] = {}
    for place in sorted(range(len(labels)), key=lambda place: labels[place].width):
        share = room // (len(labels) - len(most))
        most[place] = min(labels[place].width, max(NARROW // 2, share))
        room -= most[place]
    return [_folded(column, most[place]) for place, column in enumerate(labels)]


def _narrow(column: Column, most: int) -> Column:
    """A column with its heading folded to what its cells, or its own words, need; and long cells, as of sentences."""
    column = replace(column, cells=[_fold(cell, most) for cell in column.cells])
    cells = max((len(line) for cell in column.cells for line in cell.split("\n")), default=0)
    words = max((len(word) for word in column.heading.split()), default=0)
    return replace(column, heading=_fold(column.heading, max(NARROW, cells, min(words, most))))


def _folded(column: Column, most: int) -> Column:
    return replace(column, heading=_fold(column.heading, most), cells=[_fold(cell, most) for cell in column.cells])


def _fold(text: str, most: int) -> str:
    """A text in lines of so many characters at most; one that fits stays as it is."""
    fits = all(len(line) <= most for line in text.split("\n"))
    return text if fits else "\n".join(textwrap.wrap(text, most))


def _clean(column: Column) -> Column:
    return replace(column, heading=printable(column.heading), cells=[printable(cell) for cell in column.cells])


def _width(columns: Sequence[Column]) -> int:
    return EDGES + sum(column.width for column in columns) + BETWEEN * (len(columns) - 1)


def _table(title: str | None, columns: Sequence[Column]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.heading, justify="right" if column.right else "left", no_wrap=True, vertical="top")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table
