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
    from evaluation.report.results import Results
    from evaluation.report.tables import Table

COMMAND = "python -m evaluation.compare"
USAGE = f"{COMMAND} RUN RUN ... [--out FILE.md]"
ABOUT = """
Finished evaluations, the --out directories of `python -m evaluation.run`, in one table: a row per run, model and
decoding, a column per metric that all of them have. Above it stands what differs between the runs: where prompts, judge
or second model differ, the numbers do not compare.
"""
# Of a job: what says nothing about whether numbers compare.
NO_SETTING = {"models", "sweep", "paper", "metrics", "decodings"}
DIFFERENCES = "## What differs between the runs"
# What only a comparison of ours begins with, and bytes that it lies within: its title, its runs, the next heading.
OURS = re.compile(b"# Comparison\n\n(?:- [^\n]*\n)+\n" + re.escape(DIFFERENCES.encode()) + b"\n")
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
    return (
        "\n".join([blocks[0], "", *blocks[1:]])
        + f"\n\n{DIFFERENCES}\n\n"
        + ("\n".join(differing) if differing else "Nothing of the set-up that is recorded.")
        + f"\n\n## Measurements\n\n{in_markdown(shown)}\n\n"
        + "\n".join([*explained, f"- {ERROR_MEANING}"])
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
    """A row per run, model and decoding. What needs no answers stands in each row of its model.

    Raises:
        UserError: the runs share no metric.
    """
    from evaluation.report.cells import INTERVAL, Cell, cell, interval
    from evaluation.report.tables import Table, opponent

    kinds = [dict.fromkeys((m.metric, m.against) for m in results.measurements) for results in runs.values()]
    first = next(iter(runs.values()))
    order = first.in_order(first.measurements)
    shared = [kind for kind in kinds[0] if all(kind in others for others in kinds)]
    shared.sort(key=lambda kind: order.index(kind[0]))
    if not shared:
        measured = "; ".join(f"{name}: {_listed(found)}" for name, found in zip(runs, kinds, strict=True))
        raise UserError(f"the runs share no metric ({measured}). Evaluate them with the same --metrics and --against.")

    several = len({against for _, against in shared if against}) > 1
    headings, meanings = ["run", "model", "decoding"], {}
    rows = [[Cell(run), Cell(model), Cell(decoding or "any")] for run, model, decoding in _rows(runs)]
    for metric, against in shared:
        found = {
            (run, m.model, m.decoding): m
            for run, results in runs.items()
            for m in results.measurements
            if (m.metric, m.against) == (metric, against)
        }
        shown = first.column(next(iter(found.values())))
        headings.append(f"{shown.heading} against {opponent(against)}" if several and against else shown.heading)
        meanings[shown.heading] = shown.meaning
        measured = [found.get((run, m, d)) or found.get((run, m, "")) for run, m, d in _rows(runs)]
        estimates = [m.estimate if m else None for m in measured]
        for row, estimate in zip(rows, estimates, strict=True):
            row.append(cell(estimate, shown.form))
        if shown.interval:
            headings.append(INTERVAL)
            for row, estimate in zip(rows, estimates, strict=True):
                row.append(interval(estimate, shown.form))
    return Table("Comparison", headings, rows, 3, meanings)


def _rows(runs: Mapping[str, "Results"]) -> list[tuple[str, str, str]]:
    """Run, model, decoding; decoding "" only for models without answers."""
    found = []
    for run, results in runs.items():
        for model in dict.fromkeys(m.model for m in results.measurements):
            decodings = dict.fromkeys(m.decoding for m in results.measurements if m.model == model and m.decoding)
            found += [(run, model, decoding) for decoding in decodings or [""]]
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


def _listed(kinds: Mapping[tuple[str, str], None]) -> str:
    return ", ".join(metric + (f" against {against}" if against else "") for metric, against in kinds) or "none"


if __name__ == "__main__":
    sys.exit(main())
