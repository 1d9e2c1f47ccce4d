"""What a study would run and how long it would take, from steps that were timed already."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.command.wording import counted, duration
from recipes.study.design import Study
from recipes.study.records import Records
from recipes.study.running import CORES
from recipes.study.steps import Step, Steps, trained_rows


def plan(study: Study, folder: Path, records: Records, only: Sequence[str] = ()) -> str:
    """A line for each step that is left, with its estimated wall time, and their sum.

    A row without a chosen rate is planned at the rate in the middle.
    """
    middle = {
        row.name: study.rates_of(row)[len(study.rates_of(row)) // 2] for row in study.rows.values() if row.trained
    }
    undecided = Steps(study, folder, records, records.rates)
    decided = Steps(study, folder, records, {**middle, **records.rates})
    for row in middle:
        if row not in records.choices and not study.rows[row].rate_of and row in needed_rows(study, only):
            decided.choose(study.rows[row])
    undecided.of(only)
    steps = {**{step.name: step for step in decided.of(only)}, **undecided.steps}
    left = [step for step in steps.values() if not step.done.is_file()]
    lines = [_line(step, estimate(step, records.steps)) for step in left]
    return "\n".join([*lines, _sum(left, records.steps)])


def needed_rows(study: Study, only: Sequence[str]) -> set[str]:
    """The trained rows that the comparisons asked for hang on, those whose rate another takes included."""
    named = {name for pair in study.comparisons(only) for name in pair}
    trained = {row for name in named for row in trained_rows(study, name)}
    return trained | {row for name in trained for row in trained_rows(study, study.tuned(name))}


def estimate(step: Step, timed: Mapping[str, Mapping[str, float]]) -> float | None:
    """Wall seconds of a step: the mean of those of its kind, else of its command; None where none was timed."""
    for like in (step.kind, step.kind.split(" ")[0]):
        known = [spent["wall"] for name, spent in timed.items() if f"{name} ".startswith(f"{like} ")]
        if known:
            return statistics.fmean(known)
    return None


def _line(step: Step, seconds: float | None) -> str:
    return f"{'?' if seconds is None else duration(seconds):>8}  {step.name}"


def _sum(steps: Sequence[Step], timed: Mapping[str, Mapping[str, float]]) -> str:
    known = [(step, seconds) for step in steps if (seconds := estimate(step, timed)) is not None]
    total = sum(seconds * step.cores for step, seconds in known) / CORES
    unknown = len(steps) - len(known)
    more = f"; on top, {counted(unknown, 'step')} of a kind that was never timed" if unknown else ""
    return f"{counted(len(steps), 'step')} left, {duration(total)} on {CORES} cores{more}."
