"""`python -m evaluation.judge_check`: how far a judge can be trusted, found out on pairs that people have labelled."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from data.claim import CLAIMS, claimed
from data.command.errors import UserError, exit_on_user_error
from data.command.library_output import library_output_to
from data.command.log import start_logging
from data.command.options import enter_root, load_config, option, resolve_path
from data.command.privacy import without_secrets
from data.command.terminal import one_line, say
from data.command.usage import answered
from data.command.wording import counted, is_or_are
from evaluation.config import LOG
from evaluation.judging.base import JudgeOptions

if TYPE_CHECKING:
    from data.storage import Folder
    from evaluation.judging.base import Judge, Outcome
    from evaluation.judging.labels import Labels
    from evaluation.report.results import Results
    from evaluation.report.tables import Table

COMMAND = "python -m evaluation.judge_check"
PAGE, NUMBERS = "judge_check.md", "judge_check.json"
VERSION = 1
PANEL = "majority"
# What the record says of the labels, and a noun for each.
LABELS = (("pairs", "pair"), ("prompts", "prompt"), ("rows", "label"))

USAGE = f"{COMMAND} --labels FILE.jsonl --judge.model NAME --out DIR [...]"
ABOUT = f"""
Has a judge compare pairs of answers that people have labelled, and says how often it agrees with them (also beyond
chance: Cohen's kappa), whether it prefers what is shown first or what is longer, and what a verdict costs, each with
its interval, before it is used. Prints tables and writes {PAGE} and {NUMBERS}.

A line of --labels reads {{"prompt": "...", "answer_a": "...", "answer_b": "...", "label": "a"}}; label is a, b or tie.
Lines of one prompt and the same two answers, in either order, are several people's labels of one pair: what most say
counts, and it is a tie where two lead. Verdicts are kept in --store, the one of an evaluation if you like, and never
paid for twice: the same command goes on where it was interrupted.
"""


@dataclass
class JudgeCheckConfig:
    """Options of a check: the labels, the judge, and where what is found goes."""

    labels: str = option(None, "JSON Lines of pairs with people's labels, see above", required=True, metavar="FILE")
    out: str = option(None, f"directory for {PAGE} and {NUMBERS}", required=True, metavar="DIR")
    store: str | None = option(
        None, "directory of verdicts and rewards, reused by every run that names it (default: OUT/store)", metavar="DIR"
    )
    judge: JudgeOptions = option(JudgeOptions(), "who is checked; the key comes from $OPENAI_API_KEY")


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, JudgeCheckConfig, usage=USAGE, about=ABOUT):
        return
    config = load_config(JudgeCheckConfig, argv, command=COMMAND)
    enter_root()
    config.judge.check()
    start_logging()
    say(judge_check(config))
    say(f"report: {config.out}/{PAGE}, {NUMBERS}")


def judge_check(config: JudgeCheckConfig) -> str:
    """Check a judge and write what is found; returns the tables and what they say.

    Raises:
        UserError: the labels or the judge cannot be used, or the directory holds something else. Of a judge or a
            budget that fails in the middle too: the store keeps what was done.
    """
    from evaluation.answers.cache import Store
    from evaluation.judging import make_judge
    from evaluation.judging.labels import read_labels

    labels = read_labels(config.labels)
    with claimed(resolve_path(config.out)) as claim:
        folder = claim.folder
        store = Store(resolve_path(config.store) if config.store else f"{folder.path}/store")
        _refuse_other_files(folder, store)
        with library_output_to(folder, LOG, verbose=False):
            judge = make_judge(config.judge, store.path)
            _refuse_other_check(folder, _hash_of(labels), judge.identity())
            comparisons = [pair.comparison for pair in labels.pairs]
            judge.look_at(comparisons)
            outcomes = judge.judge(comparisons)
            judge.drop()
        results, tables_of_labels = _results(config, labels, judge, outcomes)
        claim.check()
        return _write(folder, results, tables_of_labels)


def _results(
    config: JudgeCheckConfig, labels: "Labels", judge: "Judge", outcomes: Sequence["Outcome"]
) -> tuple["Results", dict[str, Any]]:
    from data.manifest import environment
    from evaluation.judging.trust import COLUMNS, confusion, in_words, measure
    from evaluation.metrics.rates import not_judged
    from evaluation.metrics.statistics import Measurement
    from evaluation.report.results import Results

    spent, measurements, notes, confusions = judge.spent(), [], [], {}
    for number, name in enumerate([*judge.members, _name(config.judge)]):
        is_member = number < len(judge.members)
        own = [outcome.votes[number] for outcome in outcomes] if is_member else list(outcomes)
        found = measure(labels.pairs, own, spent["judges"][name] if is_member else spent)
        measurements += [Measurement(name, "", key, estimate) for key, estimate in found.items()]
        confusions[name] = confusion(labels.pairs, own)
        notes += in_words(name, found)
        notes += [
            f"{counted(n, 'pair')} {is_or_are(n)} not judged by {name}: {reason}."
            for reason, n in not_judged(own).items()
        ]
    notes += _of_judges(judge, outcomes)
    if config.judge.reward_model is None and config.judge.orders != "both":
        notes.append("Each pair was shown in one order, so that a preference for a place cannot be seen.")
    if any(pair.people > 1 for pair in labels.pairs):
        several = sum(pair.people > 1 for pair in labels.pairs)
        notes.append(
            f"{several:,} of {counted(len(labels.pairs), 'pair')} with several labels, of which the majority counts."
        )
    if labels.same:
        notes.append(f"{counted(labels.same, 'pair')} of two equal answers {is_or_are(labels.same)} left out.")
    job = {
        "labels": {
            "file": config.labels,
            "rows": labels.rows,
            "pairs": len(labels.pairs),
            "prompts": len({pair.comparison.query for pair in labels.pairs}),
            "sha256": _hash_of(labels),
        },
        "judge": judge.identity(),
        "judge_spent": dict(spent) or None,
    }
    columns = {column.key: column for column in COLUMNS}
    return Results(without_secrets(job), environment(), measurements, notes=notes, columns=columns), confusions


def _of_judges(judge: "Judge", outcomes: Sequence["Outcome"]) -> list[str]:
    """How far the judges of a panel agree, in words."""
    from evaluation.metrics.panel_rates import AGREEMENT, KAPPA, panel_estimates

    found = panel_estimates(judge.members, outcomes) if judge.members else {}
    if AGREEMENT not in found:
        return []
    kappa = f"; Fleiss' kappa {found[KAPPA].mean:.2f}" if KAPPA in found else ""
    n = found[AGREEMENT].n
    return [f"Two judges of the panel agree on {found[AGREEMENT].mean:.1%} of {n:,} pairs{kappa}."]


def _write(folder: "Folder", results: "Results", counted: dict[str, Any]) -> str:
    from data.shape import parse_json
    from evaluation.report.described import setup, versions
    from evaluation.report.files import plain, to_json
    from evaluation.report.markdown import ERROR_MEANING, escaped, in_markdown
    from evaluation.report.printed import in_terminal
    from evaluation.report.tables import meanings, tables

    made, of = [_of_judge(table) for table in tables(results)], _summary(results.job["labels"])
    explained = [f"- {escaped(name)}: {escaped(meaning)}." for name, meaning in meanings(made).items()]
    packages = ", ".join(f"{escaped(name)} {escaped(version)}" for name, version in versions(results.environment))
    blocks = [
        *("# Judge check", escaped(of), "\n".join(f"- {escaped(note)}" for note in results.notes)),
        *(block for table in made for block in (f"## {table.title}", in_markdown(table))),
        *("## Columns", "\n".join([*explained, f"- {ERROR_MEANING}"])),
        *("## Set-up", "\n".join(f"- {escaped(key)}: {escaped(value)}" for key, value in setup(results.job))),
        *("## Made with", packages + "."),
    ]
    content = {key: value for key, value in parse_json(to_json(results)).items() if key != "report_version"}
    content = {"judge_check_version": VERSION, **content, "labels_by_judge": plain(counted)}
    folder.write_together(
        {PAGE: ("\n\n".join(blocks) + "\n").encode(), NUMBERS: (json.dumps(content, indent=2) + "\n").encode()}
    )
    return "\n\n".join([one_line(of), in_terminal(made), "\n".join(results.notes)])


def _summary(labels: Mapping[str, Any]) -> str:
    """What a check is of, e.g. "40 pairs of 38 prompts, from 52 labels of labels.jsonl."."""
    pairs, prompts, rows = (counted(labels[key], one) for key, one in LABELS)
    return f"{pairs} of {prompts}, from {rows} of {labels['file']}."


def _of_judge(table: "Table") -> "Table":
    """A table of the report's kind, whose rows are judges."""
    return replace(table, headings=["judge", *table.headings[1:]])


def _name(options: JudgeOptions) -> str:
    if options.reward_model is not None:
        return PurePath(options.reward_model.rstrip("/")).name
    return options.model[0] if len(options.model) == 1 else PANEL


def _hash_of(labels: "Labels") -> str:
    from data.storage import sha256

    return sha256(json.dumps([asdict(pair) for pair in labels.pairs]).encode())


def _refuse_other_check(folder: "Folder", labels: str, judge: Mapping[str, Any]) -> None:
    """Raise UserError where the directory holds a check of another judge, or on other labels, of this hash."""
    from data.shape import parse_json

    content = folder.read_if_there(NUMBERS)
    if content is None:
        return
    try:
        job = parse_json(content)["job"]
        there = {"labels": job["labels"]["sha256"], "judge": job["judge"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{folder / NUMBERS}' is damaged ({error}). Choose another --out, or remove it.") from error
    for what, asked in (("labels", labels), ("judge", without_secrets(dict(judge)))):
        if there[what] != asked:
            raise UserError(
                f"output directory '{folder.path}' already holds a check with other settings ({what}). Choose another "
                "--out."
            )


def _refuse_other_files(folder: "Folder", store: Any) -> None:
    from data.storage import TEMPORARY_PREFIX

    ours = {PAGE, NUMBERS, LOG, CLAIMS, "store"}
    if store.path.startswith(f"{folder.path}/"):
        ours.add(store.path.removeprefix(f"{folder.path}/").partition("/")[0])
    if other := sorted(name for name in folder.names() - ours if not name.startswith(TEMPORARY_PREFIX)):
        raise UserError(f"output directory '{folder.path}' already holds '{other[0]}'. Choose another --out.")


if __name__ == "__main__":
    sys.exit(main())
