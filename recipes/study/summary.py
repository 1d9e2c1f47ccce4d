"""docs/results/study-TASK.md: the tables of a study, from its records alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.command.wording import counted
from evaluation.metrics import METRICS
from evaluation.metrics.columns import Column
from evaluation.report.cells import in_full
from recipes.study.aggregate import ERRORS, OverSeeds, change, difference, measures_of, values
from recipes.study.choice import at_an_end
from recipes.study.design import TEST, VALIDATION, Hypothesis, Study
from recipes.study.records import Comparison, Records

NOTHING = ""


def markdown(study: Study, records: Records) -> str:
    """The page of a study: rates, a table of each measure's means and differences, one of each hypothesis, costs."""
    found = records.newest
    parts = [
        f"# Study: {study.name}",
        study.about.strip(),
        f"`make study TASK={study.name}` (recipes/study/{study.name}.yaml) runs it and writes this page; its numbers "
        f"are in `study-{study.name}.json`. {study.data.parts[TEST]} test prompts; rates are chosen on "
        f"{study.data.parts[VALIDATION]} others. Behind ± is one error: sqrt(mean over seeds of the squared paired "
        f"error over prompts + variance between seeds / seeds). **Bold**: more than {ERRORS} errors from 0. Rows that "
        "were not measured yet are left out.",
        *_notes(records),
        "## Learning rates",
        _choices(study, records),
        "## Rows",
        *[_rows(study, found, measures) for measures in _in_tables(measures_of(found))],
        *[text for name in study.hypotheses for text in _hypothesis(study.hypotheses[name], found)],
        "## Cost",
        _cost(study, records),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _notes(records: Records) -> list[str]:
    old = len(records.comparisons) - len(records.newest)
    said = [f"{counted(old, 'comparison')} of models that were trained again since are left out."] if old else []
    for name, losses in sorted(records.references.items()):
        if losses:
            least = min(losses, key=lambda step: losses[step])
            by_step = ", ".join(
                f"{step}: {loss:.3f}" for step, loss in sorted(losses.items(), key=lambda at: int(at[0]))
            )
            said.append(f"Validation loss, {name} by step: {by_step}; least at {least}.")
    return said


def _choices(study: Study, records: Records) -> str:
    by = " + ".join(f"{weight:g} x {measure}" for measure, weight in study.choose_by.items())
    rows = []
    for row in filter(records.choices.__contains__, study.rows):
        choice = records.choices[row]
        scores = ", ".join(_score(choice, rate) for rate in sorted(choice["scores"], key=float))
        rows.append([row, f"{choice['rate']:g}", "yes" if at_an_end(choice) else NOTHING, scores])
    said = (
        f"By {by} on validation prompts, seed {study.seeds[0]}; more is better. Behind ± is the error of a difference "
        "from the smallest rate, where it was kept: rates closer than two of it were told apart by chance."
    )
    return said + "\n\n" + _table(["row", "rate", "end of the range", "score by rate"], rows)


def _score(choice: Mapping[str, Any], rate: str) -> str:
    error = choice["errors"].get(rate)
    return f"{rate}: {choice['scores'][rate]:.3f}" + (f" ± {error:.3f}" if error else "")


def _rows(study: Study, found: Sequence[Comparison], measures: Sequence[str]) -> str:
    head = ["row", "seeds"]
    for measure in measures:
        head += [measure, f"minus {study.baseline}"]
    rows = []
    for row in study.rows:
        own = [values(found, row, measure) for measure in measures]
        if not any(own):
            continue
        line = [row, str(max(number.seeds for number in own if number))]
        for measure, number in zip(measures, own, strict=True):
            minus = difference(found, row, study.baseline, measure) if row != study.baseline else None
            line += [_cell(measure, number), _cell(measure, minus, signed=True)]
        rows.append(line)
    return _table(head, rows)


def _hypothesis(hypothesis: Hypothesis, found: Sequence[Comparison]) -> list[str]:
    rows = []
    for row, against in hypothesis.comparisons:
        numbers = [difference(found, row, against, measure) for measure in hypothesis.measures]
        if any(numbers):
            cells = [_cell(m, n, signed=True) for m, n in zip(hypothesis.measures, numbers, strict=True)]
            rows.append([row, against, str(max(n.seeds for n in numbers if n)), *cells])
    if not rows:
        return []
    table = _table(["row", "minus", "seeds", *hypothesis.measures], rows)
    changes = [
        [f"({a} - {b}) - ({c} - {d})", *_changed(found, (a, b), (c, d), hypothesis.measures)]
        for (a, b), (c, d) in hypothesis.changes
    ]
    changes = [row for row in changes if any(row[1:])]
    table += "\n\n" + _table(["change", *hypothesis.measures], changes) if changes else ""
    unpaired = {m for r, a in hypothesis.comparisons for m in hypothesis.measures if _unpaired(found, r, a, m)}
    note = [f"Not paired by prompt: {', '.join(sorted(unpaired))}."] if unpaired else []
    return [f"## {hypothesis.name}", table, *note]


def _changed(
    found: Sequence[Comparison], first: tuple[str, str], second: tuple[str, str], measures: Sequence[str]
) -> list[str]:
    cells = []
    for measure in measures:
        one, other = difference(found, *first, measure), difference(found, *second, measure)
        cells.append(_cell(measure, change(one, other) if one and other else None, signed=True))
    return cells


def _unpaired(found: Sequence[Comparison], row: str, against: str, measure: str) -> bool:
    number = difference(found, row, against, measure)
    return number is not None and not number.paired


def _cost(study: Study, records: Records) -> str:
    wall, processor = (sum(step[key] for step in records.steps.values()) for key in ("wall", "processor"))
    said = (
        f"{len(records.steps)} steps, {wall / 3600:.1f} hours of steps' wall time (two at a time), "
        f"{processor / 3600:.1f} of processor time without Ray's workers."
    )
    rows = []
    for row in study.rows:
        of_row = {name: t for name, t in records.training.items() if name.split(" ")[1] == row}
        times = [records.steps[name]["processor"] for name in of_row if name in records.steps]
        if of_row:
            tokens, steps = (max(t[key] for t in of_row.values()) for key in ("tokens", "steps"))
            rows.append([row, str(steps), f"{tokens:,}", f"{max(times):.0f} s" if times else NOTHING])
    sets = [
        [name.removeprefix("set "), f"{made['groups']:,}", _sampled(made["sampled"], made["groups"])]
        for name, made in sorted(records.sets.items())
    ]
    tables = [
        _table(["row", "steps", "tokens read by forward passes", "processor time of a run"], rows),
        _table(["set", "groups", "tokens sampled per group, by strategy"], sets),
    ]
    return "\n\n".join([said, *tables])


def _sampled(tokens: dict[str, int], groups: int) -> str:
    return ", ".join(f"{key} {count / max(1, groups):.0f}" for key, count in tokens.items()) or "none"


def _in_tables(measures: Sequence[str]) -> list[list[str]]:
    """Measures four by four, so that tables stay readable."""
    return [list(measures[start : start + 4]) for start in range(0, len(measures), 4)]


def _cell(measure: str, number: OverSeeds | None, *, signed: bool = False) -> str:
    if number is None:
        return NOTHING
    form = in_full(_form(measure), number.mean, number.error, ERRORS) if signed else _form(measure)
    sign = "+" if signed and number.mean >= 0 else ""
    text = f"{sign}{form.format(number.mean)} ± {form.format(number.error)}"
    return f"**{text}**" if signed and number.counts else text


def _form(measure: str) -> str:
    column = _columns().get(measure.rpartition("/")[2])
    return column.form if column else "{:.4g}"


def _columns() -> dict[str, Column]:
    return {column.key: column for name in METRICS.names() for column in METRICS.load(name).columns}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else "Nothing yet."
