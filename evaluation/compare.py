"""`python -m evaluation.compare RUN RUN ...`: finished evaluations in one table."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from data.command.errors import UserError, exit_on_user_error
from data.command.options import load_config, option, resolve_path
from data.command.terminal import say
from data.command.usage import answered
from evaluation.metrics.base import SPENT

if TYPE_CHECKING:
    from evaluation.metrics.columns import Column
    from evaluation.metrics.statistics import Measurement
    from evaluation.report.results import Results
    from evaluation.report.tables import Table

COMMAND = "python -m evaluation.compare"
USAGE = f"{COMMAND} RUN RUN ... [--out FILE.md]"
ABOUT = """
Finished evaluations, the --out directories of `python -m evaluation.run`, in one table: a row per run, model and
decoding, a column per metric, blank where a run lacks it. Above it stands what differs between the runs: where prompts,
judge or second model differ, the numbers do not compare.
"""
# Of a job: what says nothing about whether numbers compare.
NO_SETTING = {"models", "sweep", "paper", "metrics", "decodings"}
DIFFERENCES = "## What differs between the runs"
# What only a comparison of ours begins with, and bytes that it lies within: its title, its runs, the next heading.
OURS = re.compile(b"# Comparison\n\n(?:- [^\n]*\n)+\n" + re.escape(DIFFERENCES.encode()) + b"\n")
BLANK_MEANING = "Blank: the run did not measure that, or not with this baseline, opponent or decoding."
MOST_BEGINNING = 1 << 20
VERSIONS = "environment."


@dataclass
class CompareConfig:
    """Options of a comparison: where it is written."""

    out: str | None = option(None, "write the comparison to this Markdown file too", metavar="FILE.md")


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, CompareConfig, usage=USAGE, about=ABOUT):
        return
    flags = next((i for i, word in enumerate(argv) if word.startswith("--")), len(argv))
    config = load_config(CompareConfig, argv[flags:], command=COMMAND)
    text = compare(argv[:flags])
    if config.out:
        from data.places import place_of, refuse_foreign

        folder, name = place_of(config.out, "--out", "comparison.md")
        refuse_foreign(folder, name, "--out", lambda content: bool(OURS.match(content)), MOST_BEGINNING)
        folder.write(name, text.encode())
    say(text.rstrip("\n"))


def compare(paths: Sequence[str]) -> str:
    """What differs between finished runs, and their table, as Markdown.

    Args:
        paths: directories of two or more runs.

    Raises:
        UserError: fewer than two, one twice, one without a report, or nothing that all of them measured.
    """
    from evaluation.report.files import read_report
    from evaluation.report.markdown import ERROR_MEANING, escaped, in_markdown
    from evaluation.report.tables import meanings

    if len(paths) < 2:
        raise UserError(f"{COMMAND} needs two finished runs or more: RUN RUN ..., the --out of evaluation.run.")
    twice = [path for i, path in enumerate(paths) if path in paths[:i]]
    if twice:
        raise UserError(f"run '{twice[0]}' is given twice. Give each run once.")
    runs = dict(zip(run_names(paths), map(read_report, map(resolve_path, paths)), strict=True))
    shown = table(runs)
    differing = [f"- {escaped(line)}" for line in differences(runs)]
    blocks = ["# Comparison", *(f"- {escaped(name)}: {escaped(path)}" for name, path in zip(runs, paths, strict=True))]
    explained = [f"- {escaped(name)}: {escaped(meaning)}." for name, meaning in meanings([shown]).items()]
    explained += [f"- {ERROR_MEANING}", f"- {BLANK_MEANING}"]
    return (
        "\n".join([blocks[0], "", *blocks[1:]])
        + f"\n\n{DIFFERENCES}\n\n"
        + ("\n".join(differing) if differing else "Nothing of the set-up that is recorded.")
        + f"\n\n## Measurements\n\n{in_markdown(shown)}\n\n"
        + "\n".join(explained)
        + "\n"
    )


def run_names(paths: Sequence[str]) -> list[str]:
    """The last parts of paths, as many as tell them apart."""
    parts = [PurePath(path.rstrip("/")).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def differences(runs: Mapping[str, "Results"]) -> list[str]:
    """One line per setting that is not the same in all runs, and per model of one name with other weights."""
    from evaluation.report.described import spoken

    settings = {name: dict(_settings(results)) for name, results in runs.items()}
    keys = dict.fromkeys(key for found in settings.values() for key in found)
    lines = []
    for key in sorted(keys, key=lambda key: key.startswith(VERSIONS)):  # versions last
        values = {name: found.get(key) for name, found in settings.items()}
        if any(value != next(iter(values.values())) for value in values.values()):
            lines.append(f"{key}: " + "; ".join(f"{name}: {spoken(value)}" for name, value in values.items()))
    for model in dict.fromkeys(model for results in runs.values() for model in _weights(results)):
        hashes = {name: _weights(results)[model] for name, results in runs.items() if model in _weights(results)}
        if len(set(hashes.values())) > 1:
            lines.append(
                f"weights of '{model}': " + "; ".join(f"{name}: {spoken(value)}" for name, value in hashes.items())
            )
    return lines


def table(runs: Mapping[str, "Results"]) -> "Table":
    """A row per run, model and decoding, a column per number, blank where a run lacks it.

    What is of no decoding, or of one alone whatever was asked for, stands in each row of its model. Differences from
    different baselines are different columns.

    Raises:
        UserError: the runs share no metric.
    """
    from evaluation.report.cells import INTERVAL, INTERVAL_MEANING, Cell, cell, interval
    from evaluation.report.tables import Table, told_apart

    numbers = {name: _numbers(results) for name, results in runs.items()}
    kinds = [{(n.metric, n.against) for n in found} for found in numbers.values()]
    if not set.intersection(*kinds):
        measured = "; ".join(f"{name}: {_listed(found)}" for name, found in numbers.items())
        raise UserError(f"the runs share no metric ({measured}). Evaluate them with the same --metrics and --against.")
    rows, several = _rows(runs), len({against for of_run in kinds for _, against in of_run if against}) > 1
    headings, meanings, tips = ["run", "model", "decoding"], {}, [""] * 3
    cells = [[Cell(run), Cell(model), Cell(decoding or "any")] for run, model, decoding in rows]
    for number, shown in _in_order(numbers).items():
        heading = number.heading(shown, several=several)
        measured = [_found(runs[run], number, m, d) if number in numbers[run] else None for run, m, d in rows]
        estimates = [m.estimate if m else None for m in measured]
        columns = [(heading, shown.meaning, [cell(e, shown.form) for e in estimates])]
        if shown.interval:
            columns.append((f"{heading}, {INTERVAL}", INTERVAL_MEANING, [interval(e, shown.form) for e in estimates]))
        for title, meaning, values in columns:
            headings.append(title)
            tips.append(meaning)
            for row, value in zip(cells, values, strict=True):
                row.append(value)
        meanings[number.heading(shown, several=False)] = shown.meaning
    return Table("Comparison", told_apart(headings), cells, 3, meanings, tips)


@dataclass(frozen=True)
class Number:
    """What a column of a comparison is of.

    Attributes:
        baseline: of a difference, that it is from; "" of anything else.
        decoding: that it is of alone; "" where the row says it.
    """

    metric: str
    against: str
    baseline: str
    decoding: str

    def heading(self, column: "Column", *, several: bool) -> str:
        """The column's heading.

        Args:
            several: there are several opponents.
        """
        from evaluation.report.tables import opponent

        heading = column.heading_beside(self.baseline)
        if self.baseline and heading == column.heading:  # an older report's, which does not say where the name goes
            heading = heading.replace("baseline", self.baseline)
        against = f" against {opponent(self.against)}" if several and self.against else ""
        return f"{heading}{against}" + (f", {self.decoding}" if self.decoding else "")


def _numbers(results: "Results") -> "dict[Number, Column]":
    """What a run measured, in a report's order, with what it is."""
    baseline, found = str(results.job.get("baseline") or ""), {}
    for key in results.in_order(results.measurements):
        for m in results.measurements:
            if m.metric == key:
                column = results.column(m)
                from_, only = baseline if column.is_difference else "", m.decoding if column.decoding else ""
                found.setdefault(Number(key, m.against, from_, only), column)
    return found


def _in_order(numbers: Mapping[str, "dict[Number, Column]"]) -> "dict[Number, Column]":
    """All numbers with what they are: the first run's in its order, another's behind what stands before it there."""
    order: list[str] = []
    for found in numbers.values():
        place = len(order)
        for metric in dict.fromkeys(number.metric for number in found):
            if metric not in order:
                order.insert(place, metric)
            place = order.index(metric) + 1
    merged: dict[Number, Column] = {}
    for found in numbers.values():
        for number, column in found.items():
            merged.setdefault(number, column)
    return dict(sorted(merged.items(), key=lambda item: order.index(item[0].metric)))


def _found(results: "Results", number: Number, model: str, decoding: str) -> "Measurement | None":
    ours = [m for m in results.measurements if (m.model, m.metric, m.against) == (model, number.metric, number.against)]
    wanted = number.decoding or decoding
    return next((m for m in ours if m.decoding == wanted), None) or next((m for m in ours if not m.decoding), None)


def _rows(runs: Mapping[str, "Results"]) -> list[tuple[str, str, str]]:
    """Run, model, decoding; decoding "" only for models without answers but those of what is of one decoding alone."""
    found = []
    for run, results in runs.items():
        for model in dict.fromkeys(m.model for m in results.measurements):
            ours = [m for m in results.measurements if m.model == model and m.decoding]
            asked = dict.fromkeys(m.decoding for m in ours if not results.column(m).decoding)
            found += [(run, model, decoding) for decoding in asked or [""]]
    return found


def _settings(results: "Results") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of what decides the numbers, models apart."""
    from evaluation.report.described import leaves

    job = {key: value for key, value in results.job.items() if key not in NO_SETTING and not key.endswith(SPENT)}
    yield from leaves(job)
    for key, value in leaves(results.environment):
        yield VERSIONS + key, value


def _weights(results: "Results") -> dict[str, Any]:
    return {name: model.get("weights_sha256") for name, model in (results.job.get("models") or {}).items()}


def _listed(numbers: "dict[Number, Column]") -> str:
    return ", ".join(n.metric + (f" against {n.against}" if n.against else "") for n in numbers) or "none"


if __name__ == "__main__":
    sys.exit(main())
