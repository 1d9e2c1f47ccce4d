"""Measurements as tables in the paper's layout: models as rows, decodings side by side as in Table 3."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from evaluation.gaps import Gaps, ranked
from evaluation.metrics.base import TRUTH
from evaluation.metrics.columns import HIGHER, NEITHER
from evaluation.metrics.statistics import Measurement
from evaluation.paper import differences, mismatches, paper_table
from evaluation.report.cells import INTERVAL, INTERVAL_MEANING, Cell, cell, interval
from evaluation.report.proposal import validation
from evaluation.report.results import Results

T = TypeVar("T", bound=Hashable)
PAPER = "paper"
PAPER_MEANING = "the paper's number for this row, see the notes"


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        headings: one per column, no two alike.
        rows: cells, as many as headings.
        labels: columns, from the left, that say what a row is; the others are numbers.
        meanings: name of what its columns hold -> what that is.
        tips: the same for each column; "" where nothing is to be said.
    """

    title: str
    headings: list[str]
    rows: list[list[Cell]]
    labels: int
    meanings: dict[str, str]
    tips: list[str]


@dataclass(frozen=True)
class Series:
    """A column to be: its cells by what labels their rows, and what it holds."""

    heading: str
    cells: Mapping[tuple[str, ...], Cell]
    name: str
    meaning: str


def tables(results: Results) -> list[Table]:
    """Tables of all measurements, in the order of their columns; one for each opponent and decoding of win rates."""
    made: list[Table] = []
    place = {key: i for i, key in enumerate(results.in_order(results.measurements))}
    in_order = sorted(results.measurements, key=lambda m: place[m.metric])
    for section in unique(results.column(m).section for m in in_order):
        found = [m for m in results.measurements if results.column(m).section == section]
        for against in unique(m.against for m in found):
            ours = [m for m in found if m.against == against]
            if against:
                made += _against(f"{section.title} against {opponent(against)}", ours, results)
            elif section.across:
                made.append(_across(section.title, ours, results))
            else:
                made.append(_by_metric(section.title, ours, results))
    swept = [point.measurement for point in validation(results.job)]
    swept = [m for m in swept if results.column(m).criterion]
    if swept:
        alone = replace(results, job={}, measurements=swept, differences=())
        made.append(_across("Ensembles over alpha, on the validation prompts", swept, alone))
    return [table for table in made if table.rows]


def paper_notes(results: Results) -> list[str]:
    """What the columns "paper" are and where that set-up is another, or why there are none."""
    if not results.job.get("paper"):
        return []
    table = paper_table(results.job["paper"])
    if mismatched := mismatches(table, results.job):
        return [f"The paper's Table {table.number} is not shown, its set-up is another: {'; '.join(mismatched)}."]
    if all(_theirs(found, results) is None for found in results.measurements):
        rows = sorted({row for values in table.values.values() for row in values})
        return [
            f"The paper's Table {table.number} has no number of the same name, decoding and metric as a row here. It "
            f"is of {' and '.join(f'{m} by {d}' for m, d in table.values)}, its rows are: {', '.join(rows)}."
        ]
    other = "; ".join(differences(table, results.job))
    return [f"Columns 'paper': Table {table.number} of arXiv 2502.16433. What differs: {other or 'nothing recorded'}."]


def best(found: Sequence[Measurement], results: Results) -> list[Measurement]:
    """The measurement of each decoding that is better than all others beyond its error; none of differences.

    Args:
        found: of one metric, against one opponent.
    """
    column = results.column(found[0])
    if column.better == NEITHER or column.is_difference:
        return []
    gaps, marked = gaps_of(results), []
    for decoding in unique(m.decoding for m in found):
        ranking = ranked([m for m in found if m.decoding == decoding], gaps, higher=column.better == HIGHER)
        if len(ranking.ordered) > 1 and not ranking.alike:
            marked.append(ranking.ordered[0])
    return marked


def gaps_of(results: Results) -> Gaps:
    """What is known of the differences between a report's models."""
    return Gaps(results.measurements, results.differences, str(results.job.get("baseline") or ""))


def told_apart(headings: Sequence[str]) -> list[str]:
    """The headings; a later one of the same words has its number behind it."""
    seen: Counter[str] = Counter()
    found = []
    for heading in headings:
        seen[heading] += 1
        found.append(f"{heading} ({seen[heading]})" if seen[heading] > 1 else heading)
    return found


def meanings(shown: Sequence[Table]) -> dict[str, str]:
    """What the columns of the tables mean."""
    return {name: meaning for table in shown for name, meaning in table.meanings.items() if meaning}


def unique(values: Iterable[T]) -> list[T]:
    """The different ones of some values, in the order of their first appearance."""
    return list(dict.fromkeys(values))


def opponent(against: str) -> str:
    """Whom answers were compared with, in words."""
    return "the ground truth" if against == TRUTH else against


def _against(title: str, found: Sequence[Measurement], results: Results) -> list[Table]:
    """A table for each decoding; where there are several, what decides stands above in one."""
    decodings = unique(m.decoding for m in found)
    made = []
    if len(decodings) > 1:
        made.append(_across(title, [m for m in found if results.column(m).criterion], results, named=False))
    for decoding in decodings:
        ours = [m for m in found if m.decoding == decoding]
        made.append(_by_metric(", ".join(filter(None, (title, decoding))), ours, results))
    return made


def _by_metric(title: str, found: Sequence[Measurement], results: Results) -> Table:
    """A row per model, and per decoding where there are several; a column per metric."""
    decodings = unique(m.decoding for m in found)
    if len(decodings) == 1 and decodings[0] and not found[0].against:
        title += f", {decodings[0]}"

    def label(m: Measurement) -> tuple[str, ...]:
        return (m.model, m.decoding) if len(decodings) > 1 else (m.model,)

    rows = [label(m) for decoding in decodings for m in found if m.decoding == decoding]
    series: list[Series] = []
    for metric in results.in_order(found):
        ours = [m for m in found if m.metric == metric]
        shown = results.column(ours[0])
        heading = shown.heading_beside(str(results.job.get("baseline") or ""))
        marked = best(ours, results)
        cells = {label(m): cell(m.estimate, shown, best=m in marked) for m in ours}
        series.append(Series(heading, cells, heading, shown.meaning))
        if shown.interval:
            bounds = {label(m): interval(m.estimate, shown) for m in ours}
            series.append(Series(f"{heading}, {INTERVAL}", bounds, INTERVAL, INTERVAL_MEANING))
        series += _paper(ours, results, label, PAPER)
        if shown.counted:
            heading, meaning = shown.counted
            series.append(Series(heading, {label(m): Cell(f"{m.estimate.n:,}") for m in ours}, heading, meaning))
    labels = ["model", "decoding"] if len(decodings) > 1 else ["model"]
    return _table(title, labels, unique(rows), series)


def _across(title: str, found: Sequence[Measurement], results: Results, *, named: bool = True) -> Table:
    """A row per model; a column per metric and decoding, or per decoding where the title names the metric."""

    def label(m: Measurement) -> tuple[str, ...]:
        return (m.model,)

    series: list[Series] = []
    for metric in results.in_order(found):
        for decoding in unique(m.decoding for m in found if m.metric == metric):
            ours = [m for m in found if m.metric == metric and m.decoding == decoding]
            shown = results.column(ours[0])
            name = shown.heading_beside(str(results.job.get("baseline") or ""))
            heading = ", ".join(filter(None, (name if named else "", decoding)))
            marked = best(ours, results)
            cells = {label(m): cell(m.estimate, shown, best=m in marked) for m in ours}
            series.append(Series(heading, cells, name, shown.meaning))
            series += _paper(ours, results, label, f"{decoding}, {PAPER}")
    return _table(title, ["model"], unique(label(m) for m in found), series)


def _paper(
    ours: Sequence[Measurement], results: Results, label: Callable[[Measurement], tuple[str, ...]], heading: str
) -> list[Series]:
    """The column of the paper's numbers, none if it has none."""
    values = {label(m): value for m in ours if (value := _theirs(m, results)) is not None}
    form = results.column(ours[0]).form
    cells = {name: Cell(form.format(value)) for name, value in values.items()}
    return [Series(heading, cells, PAPER, PAPER_MEANING)] if cells else []


def _table(title: str, labels: list[str], rows: list[tuple[str, ...]], series: Sequence[Series]) -> Table:
    return Table(
        title,
        told_apart([*labels, *(s.heading for s in series)]),
        [[*map(Cell, row), *(s.cells.get(row, Cell()) for s in series)] for row in rows],
        len(labels),
        {s.name: s.meaning for s in series},
        [*("" for _ in labels), *(s.meaning for s in series)],
    )


def _theirs(measurement: Measurement, results: Results) -> float | None:
    """The paper's number for a measurement, None if it has none or its set-up is another."""
    table = paper_table(results.job["paper"]) if results.job.get("paper") else None
    if table is None or mismatches(table, results.job):
        return None
    column = results.column(measurement)
    return table.value(measurement.model, measurement.decoding, column.paper, measurement.against)
