"""A report as a terminal shows it: plain text without markup, tables no wider than it is."""

from collections.abc import Sequence

from data.command.fitting import Column, as_text
from data.command.terminal import one_line, width
from evaluation.report.cells import BETTER, Cell
from evaluation.report.tables import Table
from evaluation.report.verdict import Verdict

BEST = "*"  # before the best of a column, so that numbers still end below each other


def in_terminal(tables: Sequence[Table]) -> str:
    """The tables under their titles; what does not fit the width stands below, beside the labels again."""
    blocks = [f"{one_line(table.title)}\n{fitted(table)}" for table in tables]
    if any(cell.best for table in tables for row in table.rows for cell in row):
        blocks.append(f"{BEST} {BETTER}.")
    return "\n\n".join(blocks)


def fitted(table: Table) -> str:
    """A table as plain text."""
    columns = [
        Column(one_line(heading), [_text(row[i]) for row in table.rows], right=i >= table.labels)
        for i, heading in enumerate(table.headings)
    ]
    return as_text(columns[: table.labels], columns[table.labels :], width())


def spoken(found: Verdict) -> list[str]:
    """The verdict as blocks of text."""
    lines = "\n".join(f"- {one_line(line)}" for line in found.lines)
    return [block for block in (lines, one_line(found.also), one_line(found.hedge)) if block]


def _text(cell: Cell) -> str:
    return (BEST if cell.best else "") + one_line(cell.text)
