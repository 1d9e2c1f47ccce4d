"""Measurements as tables in the paper's layout: models as rows, decodings side by side as in Table 3."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from evaluation.metrics.statistics import Measurement
from evaluation.paper import differences, mismatches, paper_table
from evaluation.report.columns import (
    ANSWERS,
    COLUMNS,
    INTERVAL,
    INTERVAL_MEANING,
    JUDGED,
    JUDGED_MEANING,
    LENGTH,
    MODEL,
    SECOND,
    WIN,
    Cell,
    cell,
    column,
    interval,
)
from evaluation.report.proposal import CURVES, validation
from evaluation.report.results import Results

T = TypeVar("T", bound=Hashable)
PAPER = "paper"
PAPER_MEANING = "the paper's number for this row, see the notes"
WITH_INTERVAL = ("win_rate", "win_rate_difference")
TITLES = {ANSWERS: "Answers", LENGTH: "Length and repetition", MODEL: "Ground truths and held-out groups"}

# The paper's number for a measurement.
Theirs = Callable[[Measurement], float | None]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        headings: one per column.
        rows: cells, as many as headings.
        labels: columns, from the left, that say what a row is; the others are numbers.
        meanings: name of what its columns hold -> what that is.
    """

    title: str
    headings: list[str]
    rows: list[list[Cell]]
    labels: int
    meanings: dict[str, str]


@dataclass(frozen=True)
class Series:
    """A column to be: its cells by what labels their rows, and what it holds."""

    heading: str
    cells: Mapping[tuple[str, ...], Cell]
    name: str
    meaning: str


def tables(results: Results) -> list[Table]:
    """All that were measured, win rates first."""
    theirs = _theirs(results.job)
    by_table: dict[str, list[Measurement]] = {}
    for found in results.measurements:
        by_table.setdefault(column(found).table, []).append(found)

    made = []
    for against in unique(m.against for m in by_table.get(WIN, [])):
        ours = [m for m in by_table[WIN] if m.against == against]
        decodings = unique(m.decoding for m in ours)
        if len(decodings) > 1:
            rates = [m for m in ours if m.metric == "win_rate"]
            made.append(_across(f"Win rate against {opponent(against)}", rates, theirs, named=False))
        for decoding in decodings:
            title = ", ".join(filter(None, (f"Win rate against {opponent(against)}", decoding)))
            made.append(_by_metric(title, [m for m in ours if m.decoding == decoding], theirs, results.job))
    if SECOND in by_table:
        made.append(_across("Under the second model", by_table[SECOND], theirs))
    for name, title in TITLES.items():
        if name in by_table:
            made.append(_by_metric(title, by_table[name], theirs, results.job))
    swept = [point.measurement for point in validation(results.job) if point.measurement.metric in CURVES]
    if swept:
        made.append(_across("Ensembles over alpha, on the validation prompts", swept, lambda _: None))
    return [table for table in made if table.rows]


def paper_notes(results: Results) -> list[str]:
    """What the columns "paper" are and where that set-up is another, or why there are none."""
    if not results.job.get("paper"):
        return []
    table = paper_table(results.job["paper"])
    theirs = _theirs(results.job)
    if mismatched := mismatches(table, results.job):
        return [f"The paper's Table {table.number} is not shown, its set-up is another: {'; '.join(mismatched)}."]
    if all(theirs(found) is None for found in results.measurements):
        rows = sorted({row for values in table.values.values() for row in values})
        return [
            f"The paper's Table {table.number} has no number of the same name, decoding and metric as a row here. It "
            f"is of {' and '.join(f'{m} by {d}' for m, d in table.values)}, its rows are: {', '.join(rows)}."
        ]
    other = "; ".join(differences(table, results.job))
    return [f"Columns 'paper': Table {table.number} of arXiv 2502.16433. What differs: {other or 'nothing recorded'}."]


def meanings(shown: Sequence[Table]) -> dict[str, str]:
    """What the columns of the tables mean."""
    return {name: meaning for table in shown for name, meaning in table.meanings.items() if meaning}


def unique(values: Iterable[T]) -> list[T]:
    """In the order of their first appearance."""
    return list(dict.fromkeys(values))


def opponent(against: str) -> str:
    """In words."""
    return "the ground truth" if against == "truth" else against


def _by_metric(title: str, found: Sequence[Measurement], theirs: Theirs, job: Mapping[str, Any]) -> Table:
    """A row per model, and per decoding where there are several; a column per metric."""
    decodings = unique(m.decoding for m in found)
    if len(decodings) == 1 and decodings[0] and column(found[0]).table != WIN:
        title += f", {decodings[0]}"

    def label(m: Measurement) -> tuple[str, ...]:
        return (m.model, m.decoding) if len(decodings) > 1 else (m.model,)

    rows = [label(m) for decoding in decodings for m in found if m.decoding == decoding]
    series: list[Series] = []
    for metric in _in_order(found):
        ours = [m for m in found if m.metric == metric]
        shown = column(ours[0])
        heading = shown.heading
        if metric == "win_rate_difference" and job.get("baseline"):
            heading = f"difference from {job['baseline']}"
        cells = {label(m): cell(m.estimate, shown.form) for m in ours}
        series.append(Series(heading, cells, shown.heading, shown.meaning))
        if metric in WITH_INTERVAL:
            bounds = {label(m): interval(m.estimate, shown.form) for m in ours}
            series.append(Series(INTERVAL, bounds, INTERVAL, INTERVAL_MEANING))
        series += _paper(ours, theirs, label, PAPER)
        if metric == "win_rate":
            judged = {label(m): Cell(f"{m.estimate.n:,}") for m in ours}
            series.append(Series(JUDGED, judged, JUDGED, JUDGED_MEANING))
    labels = ["model", "decoding"] if len(decodings) > 1 else ["model"]
    return _table(title, labels, unique(rows), series)


def _across(title: str, found: Sequence[Measurement], theirs: Theirs, *, named: bool = True) -> Table:
    """A row per model; a column per metric and decoding, or per decoding where the title names the metric."""

    def label(m: Measurement) -> tuple[str, ...]:
        return (m.model,)

    series: list[Series] = []
    for metric in _in_order(found):
        for decoding in unique(m.decoding for m in found if m.metric == metric):
            ours = [m for m in found if m.metric == metric and m.decoding == decoding]
            shown = column(ours[0])
            heading = ", ".join(filter(None, (shown.heading if named else "", decoding)))
            cells = {label(m): cell(m.estimate, shown.form) for m in ours}
            series.append(Series(heading, cells, shown.heading, shown.meaning))
            series += _paper(ours, theirs, label, f"{decoding}, {PAPER}")
    return _table(title, ["model"], unique(label(m) for m in found), series)


def _paper(
    ours: Sequence[Measurement], theirs: Theirs, label: Callable[[Measurement], tuple[str, ...]], heading: str
) -> list[Series]:
    """The column of the paper's numbers, none if it has none."""
    values = {label(m): value for m in ours if (value := theirs(m)) is not None}
    form = column(ours[0]).form
    cells = {name: Cell(form.format(value)) for name, value in values.items()}
    return [Series(heading, cells, PAPER, PAPER_MEANING)] if cells else []


def _table(title: str, labels: list[str], rows: list[tuple[str, ...]], series: Sequence[Series]) -> Table:
    return Table(
        title,
        [*labels, *(s.heading for s in series)],
        [[*map(Cell, row), *(s.cells.get(row, Cell()) for s in series)] for row in rows],
        len(labels),
        {s.name: s.meaning for s in series},
    )


def _in_order(found: Sequence[Measurement]) -> list[str]:
    """Metrics as `columns.COLUMNS` lists them, then the others."""
    there = unique(m.metric for m in found)
    return [m for m in COLUMNS if m in there] + [m for m in there if m not in COLUMNS]


def _theirs(job: Mapping[str, Any]) -> Theirs:
    table = paper_table(job["paper"]) if job.get("paper") else None
    if table is None or mismatches(table, job):
        return lambda _: None
    return lambda m: table.value(m.model, m.decoding, m.metric, m.against)
