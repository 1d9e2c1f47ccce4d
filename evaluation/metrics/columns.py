"""How a measurement is shown: what a metric says of each number that it gives, and reports and plots follow."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

DIRECTIONS = HIGHER, LOWER, NEITHER = "higher", "lower", "neither"
DIFFERENCE = "_difference"


@dataclass(frozen=True)
class Section:
    """A table of a report, or one per opponent.

    Attributes:
        title: of the table.
        place: tables come in this order.
        across: a column for each decoding, in one row per model; else a row for each decoding.
    """

    title: str
    place: int = 100
    across: bool = False


WIN = Section("Win rate", 10)
SECOND = Section("Under the second model", 20, across=True)
ANSWERS = Section("Answers", 30)
LENGTH = Section("Length and repetition", 40)
MODEL = Section("Ground truths and held-out groups", 50)


@dataclass(frozen=True)
class Mark:
    """What a metric says of one answer, in a word or two: shown at the answer, and something to filter samples by.

    Attributes:
        label: the words, e.g. "correct"; what is marked alike has one label.
        kind: whether it speaks for or against the answer; decides the colour, and good ones are listed first.
        tip: a sentence that explains it, which opens at the mark; "" for none.
    """

    label: str
    kind: Literal["good", "bad", "neutral"] = "neutral"
    tip: str = ""


@dataclass(frozen=True)
class Column:
    """What a report must know of one number that a metric gives.

    Attributes:
        key: what a measurement of it is called, unlike that of any other column.
        heading: of the column.
        form: of mean and standard error.
        meaning: half a sentence, without a full stop.
        section: the table.
        better: HIGHER, LOWER or NEITHER.
        unit: of the number, for the axis of a plot.
        share: it is a mean of values from 0 to 1, which has an exact interval where all of them are equal.
        paired: its difference from the baseline's, by prompt, is a column as well.
        difference: heading of that column; "" is the heading and "minus baseline".
        named_difference: the same with {baseline}, for tables, where the baseline has a name; "" is `difference` with
            that in place of "baseline".
        named: of a difference's own column that heading.
        interval: the interval is a column as well.
        counted: heading of a column of the number of examples, and what these are; no column without.
        figure: it has a panel in Figure 1.
        curve: it is drawn over alpha wherever it was measured on a sweep's validation prompts; else only where alpha
            was chosen by it.
        chance: drawn as a line over alpha.
        criterion: alpha may be chosen by it, see `Metric.criterion`, which decides it.
        decoding: that it is of alone, see `AnswerMetric.decoding`, which decides it; "" for any.
        paper: what the paper's tables call it.
    """

    key: str
    heading: str
    form: str
    meaning: str
    section: Section = ANSWERS
    better: str = NEITHER
    unit: str = ""
    share: bool = False
    paired: bool = False
    difference: str = ""
    named_difference: str = ""
    named: str = ""
    interval: bool = False
    counted: tuple[str, str] | None = None
    figure: bool = False
    curve: bool = False
    chance: float | None = None
    criterion: bool = False
    decoding: str = ""
    paper: str = ""

    @property
    def percent(self) -> bool:
        """Whether the column is shown in percent."""
        return self.form.endswith("%}")

    @property
    def spoken_better(self) -> str:
        """ "more is better", "less is better" or ""."""
        return {HIGHER: "more is better", LOWER: "less is better"}.get(self.better, "")

    @property
    def is_difference(self) -> bool:
        """Whether the column shows differences of another column's numbers from the baseline's."""
        return self.key.endswith(DIFFERENCE)

    def heading_beside(self, baseline: str) -> str:
        """The heading; of a column of differences with the baseline's name, where that is known."""
        return self.named.replace("{baseline}", baseline) if self.named and baseline else self.heading

    def difference_column(self) -> "Column":
        """The column of the differences from the baseline's."""
        heading = self.difference or f"{self.heading} minus baseline"
        return Column(
            self.key + DIFFERENCE,
            heading,
            self.form.replace("{:", "{:+"),
            f"{self.heading} minus the baseline's, by prompt",
            self.section,
            self.better,
            self.unit,
            named=self.named_difference or heading.replace("baseline", "{baseline}"),
            interval=self.interval,
        )


def with_differences(columns: tuple[Column, ...], criterion: Column | None = None) -> list[Column]:
    """A metric's columns, each difference behind its own.

    Args:
        criterion: the one of them that alpha may be chosen by, which is marked; None for none.
    """
    found: list[Column] = []
    for column in columns:
        found.append(replace(column, criterion=column is criterion))
        if column.paired:
            found.append(column.difference_column())
    return found


def in_order(columns: list[Column]) -> dict[str, Column]:
    """Columns by key, as reports show them: by table, and in a table as they come."""
    return {column.key: column for column in sorted(columns, key=lambda column: column.section.place)}


def as_asked(columns: list[Column]) -> dict[str, Column]:
    """Columns by key, what was asked for first, first: a table stands where the first of its columns would."""
    sections = list(dict.fromkeys(column.section for column in columns))
    return {column.key: column for column in sorted(columns, key=lambda column: sections.index(column.section))}


def to_json(column: Column) -> dict[str, Any]:
    """A column as JSON: the attributes that are not as by default, without the key."""
    fields = dataclasses.fields(Column)
    given = {f.name: getattr(column, f.name) for f in fields if getattr(column, f.name) != f.default}
    del given["key"]
    return {**given, "section": dataclasses.asdict(column.section)}


def from_json(key: str, entry: Mapping[str, Any]) -> Column:
    """The column of what `to_json` gave. Raises KeyError, TypeError or ValueError."""
    counted = entry.get("counted")
    changes = {"section": Section(**entry["section"]), "counted": (counted[0], counted[1]) if counted else None}
    column = Column(key=key, **{**entry, **changes})
    column.form.format(0.0)
    return column
