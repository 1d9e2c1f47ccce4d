"""`python -m evaluation.compare RUN RUN ...`: finished evaluations in one table."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from data.command.errors import UserError, did_you_mean, exit_on_user_error
from data.command.options import load_config, option, resolve_path
from data.command.terminal import one_line, say
from data.command.usage import answered
from data.command.wording import counted
from evaluation.metrics.base import SPENT
from evaluation.metrics.columns import DIFFERENCE, NEITHER

if TYPE_CHECKING:
    from evaluation.metrics.columns import Column
    from evaluation.metrics.statistics import Measurement
    from evaluation.report.results import Results
    from evaluation.report.tables import Table
    from evaluation.report.verdict import Verdict

COMMAND = "python -m evaluation.compare"
USAGE = f"{COMMAND} RUN RUN ... [--metrics NAME ...] [--out FILE.md]"
ABOUT = """
Finished evaluations, the --out directories of `python -m evaluation.run`, in one table: a row per run, model and
decoding, a column per metric, blank where a run lacks it, first what says which way is better; on the terminal that
alone, in --out FILE.md all. Above it stand a verdict, by what all runs measured alike on the same prompts, and what
differs between the runs: where prompts, judge or second model differ, the numbers do not compare. Intervals are in each
run's own report.
"""
EVERY = "all"
# Of a job: what says nothing about whether numbers compare.
NO_SETTING = {"models", "sweep", "paper", "metrics", "decodings"}
VERDICT, DIFFERENCES, NUMBERS = "Verdict", "What differs between the runs", "Measurements"
# What only a comparison of ours begins with, and bytes that it lies within: its title, its runs, the next heading (of
# older ones the second).
OURS = re.compile(b"# Comparison\n\n(?:- [^\n]*\n)+\n## (?:%s|%s)\n" % (VERDICT.encode(), DIFFERENCES.encode()))
ALIKE = "Nothing of the set-up that is recorded."
ANY = "any"  # decoding
KEYS = 3  # columns that say what a row is of
BLANK_MEANING = (
    "Blank, or no row: the run did not measure that, or not with this baseline, opponent or decoding. What has no "
    f"decoding stands once, in a row '{ANY}' where a model has several. Intervals are in each run's report."
)
MOST_BEGINNING = 1 << 20
VERSIONS = "environment."
HASH = "sha256"
MOST_SHOWN = 2  # of a list, as of the hashes of many shards


@dataclass
class CompareConfig:
    """Options of a comparison: what it shows, and where it is written."""

    metrics: list[str] | None = option(
        None,
        "which metrics, what matters most first, as evaluation.run names them: verdict and table are of these alone "
        f"(default: all, and on the terminal a table of what says which way is better; '{EVERY}': all there too)",
        metavar="NAME",
    )
    out: str | None = option(None, "write the comparison to this Markdown file too", metavar="FILE.md")


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, CompareConfig, usage=USAGE, about=ABOUT):
        return
    flags = next((i for i, word in enumerate(argv) if word.startswith("--")), len(argv))
    config = load_config(CompareConfig, argv[flags:], command=COMMAND)
    found = compare(argv[:flags], config.metrics)
    if config.out:
        from data.places import place_of, refuse_foreign

        folder, name = place_of(config.out, "--out", "comparison.md")
        refuse_foreign(folder, name, "--out", lambda content: bool(OURS.match(content)), MOST_BEGINNING)
        folder.write(name, found.markdown().encode())
    say(found.text())


@dataclass(frozen=True)
class Comparison:
    """Finished runs side by side.

    Attributes:
        runs: a line for each: its path, what prompts it is of, and whether its report has notes.
        verdict: in words, of what all of them measured.
        differing: a line for each difference of their settings.
        table: of all measurements that were asked for.
        shown: what the terminal shows of it.
        left_out: headings of the columns that it does not show.
    """

    runs: list[str]
    verdict: "Verdict"
    differing: list[str]
    table: "Table"
    shown: "Table"
    left_out: list[str]

    def markdown(self) -> str:
        """The comparison as a Markdown file."""
        from evaluation.report.markdown import ERROR_MEANING, escaped, in_markdown, in_words
        from evaluation.report.tables import meanings

        def listed(lines: Sequence[str]) -> str:
            return "\n".join(f"- {escaped(line)}" for line in lines)

        meant = [f"{name}: {meaning}." for name, meaning in meanings([self.table]).items()]
        blocks = ["# Comparison", listed(self.runs), f"## {VERDICT}", *in_words(self.verdict), f"## {DIFFERENCES}"]
        blocks += [listed(self.differing) or ALIKE, f"## {NUMBERS}", in_markdown(self.table)]
        blocks += [listed([*meant, ERROR_MEANING, BLANK_MEANING])]
        return "\n\n".join(blocks) + "\n"

    def text(self) -> str:
        """The comparison as a terminal shows it; what columns mean is in the file and in docs/evaluation.md."""
        from evaluation.report.markdown import ERROR_MEANING
        from evaluation.report.printed import fitted, spoken

        differing = "\n".join(f"- {one_line(line)}" for line in self.differing) or ALIKE
        blocks = ["\n".join(f"- {one_line(line)}" for line in self.runs), *spoken(self.verdict)]
        blocks += [f"{DIFFERENCES}\n{differing}", fitted(self.shown), f"{ERROR_MEANING} {BLANK_MEANING}"]
        if self.left_out:
            more, names = counted(len(self.left_out), "more column"), one_line(", ".join(self.left_out))
            blocks.append(f"{more}, by --metrics {EVERY} or in --out FILE.md: {names}.")
        return "\n\n".join(blocks)


def compare(paths: Sequence[str], metrics: Sequence[str] | None = None) -> Comparison:
    """Finished runs side by side, whatever each of them measured.

    Args:
        paths: directories of two or more runs.
        metrics: names of those that it is of, what matters most first; None for all.

    Raises:
        UserError: fewer than two runs, one twice, or one without a report; or a metric that none of them has.
    """
    from evaluation.report.described import summary
    from evaluation.report.files import read_report
    from evaluation.report.joined import joint_verdict

    if len(paths) < 2:
        raise UserError(f"{COMMAND} needs two finished runs or more: RUN RUN ..., the --out of evaluation.run.")
    twice = [path for i, path in enumerate(paths) if path in paths[:i]]
    if twice:
        raise UserError(f"run '{twice[0]}' is given twice. Give each run once.")
    runs = dict(zip(run_names(paths), map(read_report, map(resolve_path, paths)), strict=True))
    said = [
        f"{name}: {path}: {summary(results.job)}{_notes(results)}"
        for (name, results), path in zip(runs.items(), paths, strict=True)
    ]
    if metrics is not None and list(metrics) != [EVERY]:
        runs = chosen(runs, metrics)
    main = {name: _decisive(results) for name, results in runs.items()}
    if metrics is not None or not any(results.measurements for results in main.values()):
        main = runs
    whole, kept = table(runs), columns(main)
    left_out = [h for number, h in zip(columns(runs), whole.headings[KEYS:], strict=True) if number not in kept]
    return Comparison(said, joint_verdict(runs), differences(runs), whole, table(main), left_out)


def chosen(runs: "Mapping[str, Results]", metrics: Sequence[str]) -> "dict[str, Results]":
    """The runs with the numbers of some metrics alone, in the order of these.

    A column of no metric that is known here, of a panel's judge say, goes by the name that it has in report.json.

    Raises:
        UserError: none is named, or one that no run has.
    """
    from evaluation.metrics import known
    from evaluation.metrics.base import columns_of

    owners = {column.key: metric.name for metric in known() for column in columns_of([metric])}

    def owner(key: str) -> str:
        return owners.get(key, key.removesuffix(DIFFERENCE))

    there = sorted({owner(m.metric) for results in runs.values() for m in results.measurements})
    if not metrics:
        raise UserError(f"--metrics names none. Use some of {', '.join(there)}, or {EVERY}.")
    if EVERY in metrics:
        raise UserError(f"--metrics '{EVERY}' stands alone. Leave the others out, or it.")
    for name in metrics:
        if name not in there:
            near = did_you_mean(name, there)
            raise UserError(f"--metrics '{name}': no run measured that. They have {', '.join(there)}.{near}")

    def only(results: "Results") -> "Results":
        measurements = [m for m in results.measurements if owner(m.metric) in metrics]
        columns = {key: column for name in metrics for key, column in results.columns.items() if owner(key) == name}
        return replace(results, measurements=measurements, columns=columns)

    return {name: only(results) for name, results in runs.items()}


def _decisive(results: "Results") -> "Results":
    """A run with the numbers alone that say which way is better."""
    return replace(results, measurements=[m for m in results.measurements if results.column(m).better != NEITHER])


def _notes(results: "Results") -> str:
    return f" {counted(len(results.notes), 'note')} in its report." if results.notes else ""


def run_names(paths: Sequence[str]) -> list[str]:
    """The last parts of paths, as many as tell them apart."""
    parts = [PurePath(path.rstrip("/")).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def differences(runs: Mapping[str, "Results"]) -> list[str]:
    """A line per setting that is not the same in all runs, and per model of one name with other weights.

    Settings and places first, then hashes, then versions. What a run has nothing of, a judge say, is one line.
    """
    settings = {name: dict(_settings(results)) for name, results in runs.items()}
    keys = list(dict.fromkeys(k for found in settings.values() for k, value in found.items() if value is not None))
    lacked = {_owner(key) for key in keys for found in settings.values() if not _has(found, _owner(key))}
    named = {_owner(key): key for key in reversed(keys)}  # of each the first key
    lines = []
    for key in sorted(keys, key=lambda key: (key.startswith(VERSIONS), key.endswith(HASH))):
        values = {name: found.get(key) for name, found in settings.items()}
        if _differ(values) and not (_owner(key) in lacked and named[_owner(key)] != key):
            lines.append(f"{key}: {_by_run(values)}")
    for model in dict.fromkeys(model for results in runs.values() for model in _weights(results)):
        hashes = {name: _weights(results)[model] for name, results in runs.items() if model in _weights(results)}
        if _differ(hashes):
            lines.append(f"weights of '{model}': {_by_run(hashes)}")
    return lines


def _owner(key: str) -> str:
    return key.partition(".")[0]


def _has(settings: Mapping[str, Any], owner: str) -> bool:
    """Whether a run has anything of what a key's first part names."""
    return any(value is not None for key, value in settings.items() if _owner(key) == owner)


def _by_run(values: Mapping[str, Any]) -> str:
    from evaluation.report.described import spoken

    def short(value: Any) -> str:
        if isinstance(value, list) and len(value) > MOST_SHOWN:
            return f"{spoken(value[:MOST_SHOWN])} and {len(value) - MOST_SHOWN} more"
        return spoken(value)

    return "; ".join(f"{name}: {short(value)}" for name, value in values.items())


def _differ(values: Mapping[str, Any]) -> bool:
    return any(value != next(iter(values.values())) for value in values.values())


def table(runs: Mapping[str, "Results"]) -> "Table":
    """A row per run, model and decoding, a column per number, blank where a run lacks it.

    What is of no decoding, or of one alone that was not asked for, stands once: in a row of its own where a model has
    several. See `columns`.
    """
    from evaluation.report.cells import Cell, cell
    from evaluation.report.tables import Table, told_apart

    shown_of = columns(runs)
    opponents = {number.against for number in shown_of if number.against}
    placed = {run: _placed(results) for run, results in runs.items()}
    rows, several = [(run, *row) for run, found in placed.items() for row in found], len(opponents) > 1
    headings, meanings, tips = ["run", "model", "decoding"], {}, [""] * KEYS
    cells = [[Cell(run), Cell(model), Cell(decoding or ANY)] for run, model, decoding in rows]
    for number, shown in shown_of.items():
        measured = [placed[run][model, decoding].get(number) for run, model, decoding in rows]
        headings.append(number.heading(shown, several=several))
        tips.append(shown.meaning)
        for row, m in zip(cells, measured, strict=True):
            row.append(cell(m.estimate if m else None, shown))
        meanings[number.heading(shown, several=False)] = shown.meaning
    return Table("Comparison", told_apart(headings), cells, KEYS, meanings, tips)


def columns(runs: Mapping[str, "Results"]) -> "dict[Number, Column]":
    """The columns of a table of runs, in its order: what says which way is better, its differences, the rest.

    Differences from different baselines are different columns.
    """
    numbers = {name: _numbers(results) for name, results in runs.items()}
    return dict(sorted(_in_order(numbers).items(), key=lambda item: _importance(item[1])))


def _importance(column: "Column") -> int:
    """Where a column stands: what says which way is better, its differences from a baseline, the rest."""
    return 2 if column.better == NEITHER else 1 if column.is_difference else 0


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
    found: dict[Number, Column] = {}
    for key in results.in_order(results.measurements):
        for m in results.measurements:
            if m.metric == key:
                found.setdefault(_number(m, results), results.column(m))
    return found


def _number(m: "Measurement", results: "Results") -> Number:
    column = results.column(m)
    baseline = str(results.job.get("baseline") or "") if column.is_difference else ""
    return Number(m.metric, m.against, baseline, m.decoding if column.decoding else "")


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


def _placed(results: "Results") -> "dict[tuple[str, str], dict[Number, Measurement]]":
    """A run's rows, model and decoding, with what stands in them; the decoding "" is of what has none of its own."""
    rows: dict[tuple[str, str], dict[Number, Measurement]] = {}
    for model in dict.fromkeys(m.model for m in results.measurements):
        ours = [m for m in results.measurements if m.model == model]
        asked = list(dict.fromkeys(m.decoding for m in ours if m.decoding and not results.column(m).decoding))
        rest = asked[0] if len(asked) == 1 else ""
        for decoding in [*asked, ""]:
            found = {_number(m, results): m for m in ours if (m.decoding if m.decoding in asked else rest) == decoding}
            if found:
                rows[model, decoding] = found
    return rows


def _settings(results: "Results") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of what decides the numbers, models apart."""
    from evaluation.report.described import leaves

    job = {key: value for key, value in results.job.items() if key not in NO_SETTING and not key.endswith(SPENT)}
    yield from leaves(job)
    for key, value in leaves(results.environment):
        yield VERSIONS + key, value


def _weights(results: "Results") -> dict[str, Any]:
    return {name: model.get("weights_sha256") for name, model in (results.job.get("models") or {}).items()}


if __name__ == "__main__":
    sys.exit(main())
