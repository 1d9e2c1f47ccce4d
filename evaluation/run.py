"""`python -m evaluation.run`: compare checkpoints on held-out prompts."""

import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data.command.errors import UserError, exit_on_user_error
from data.command.log import start_logging
from data.command.options import load_config, resolve_path
from data.command.privacy import without_secrets
from data.command.usage import answered
from evaluation.config import TRUTH, EvaluateConfig

if TYPE_CHECKING:
    from data.storage import Folder
    from evaluation.answers.cache import Store
    from evaluation.measure import Answers

log = logging.getLogger(__name__)

JOB_FILE = "evaluation_job.json"
# Folders that an evaluation makes in --out, before it is finished too.
FOLDERS = {"store", "ensembles"}

USAGE = "python -m evaluation.run --model NAME=PATH [--model NAME=PATH ...] --dataset D --out DIR [...]"
ABOUT = """
Compares checkpoints on held-out prompts: answers by vLLM, win rates by a judge (any OpenAI-compatible server, or a
local reward model), reverse KL and NLL under a second model, MAUVE, ranking of held-out groups, ensembles over alpha.
Prints a table and writes report.md, report.json and report.html. What was generated, scored and judged is kept in
--store and never made, or paid for, twice: the same command goes on where it was interrupted. At SIGINT (Ctrl+C) and
SIGTERM the requests to a judge that are under way are waited for and kept; SIGKILL, or a second Ctrl+C, loses these.
"""


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, EvaluateConfig, usage=USAGE, about=ABOUT):
        return
    config = load_config(EvaluateConfig, argv, command="python -m evaluation.run")
    config.check()
    start_logging()
    print(evaluate(config))
    print(f"report: {config.out}/report.md, report.html, report.json")


def evaluate(config: EvaluateConfig) -> str:
    """Evaluate every checkpoint and write the report; returns the table.

    Raises:
        UserError: unusable model, data, judge or negative set, or an output directory that holds something else. Of a
            judge or a budget that fails in the middle too: the store keeps what was done.
    """
    from data.manifest import environment
    from data.storage import Folder
    from evaluation.answers.cache import Store
    from evaluation.answers.decoding import parse_decoding
    from evaluation.judging.chat_judge import make_judge
    from evaluation.measure import judge_all, measure
    from evaluation.metrics.mauve_score import check_possible
    from evaluation.report import Results, write_report
    from evaluation.samples import sample_rows
    from evaluation.steps import Stages
    from evaluation.sweep import add_ensembles, describe_sweep, halves

    metrics = config.chosen_metrics()
    decodings = list({d.name: d for d in map(parse_decoding, config.decode or ["greedy"])}.values())
    folder = Folder(resolve_path(config.out))
    store = Store(resolve_path(config.store) if config.store else f"{folder.path}/store")
    _refuse_other_files(folder, store)
    judge = make_judge(config.judge, store.path) if "win_rate" in metrics else None
    stages = Stages(config, store, metrics)
    alphas = config.alphas()
    ids = [group.id for group in stages.groups]
    test, validation = halves(ids) if alphas else (range(len(ids)), range(0))
    if alphas and not (test and validation):
        raise UserError(f"--sweep needs prompts to choose an alpha on and others to report on, got {len(ids)}.")
    if "mauve" in metrics:
        check_possible(min(map(len, (test, validation))) if alphas else len(test))
    job = {
        **stages.describe(test),
        "decodings": [d.name for d in decodings],
        "against": config.opponents() if judge else [],
        "judge": judge.identity() if judge else None,
        "baseline": stages.checkpoints[0].name,
    }
    _refuse_other_evaluation(folder, job)
    folder.write(JOB_FILE, json.dumps(without_secrets(job), indent=2).encode())

    ensembles = add_ensembles(config, store)
    stages.add_ensembles(ensembles)
    job["models"] = stages.describe_models()
    every = stages.generate(decodings)
    stages.score_answers(every)
    found = stages.measure_checkpoints(test)
    if judge:
        judge_all(every, config.opponents(), judge)
        job["judge_spent"] = judge.spent() or None

    found += measure(every, metrics, test, mauve=stages.mauve(), baseline=job["baseline"])
    if alphas:
        chosen_on = measure(every, metrics, validation, mauve=stages.mauve())
        job["sweep"] = describe_sweep(alphas, list(ensembles), chosen_on, decodings[0].name)
        job["sweep"]["validation_prompts"] = len(validation)
    rows = sample_rows(every, test, checkable="correct" in metrics)
    return write_report(folder, Results(without_secrets(job), environment(), found, rows, notes(every, metrics, test)))


def notes(every: "Sequence[Answers]", metrics: "Sequence[str]", kept: "Sequence[int]") -> list[str]:
    """What a reader must know beside the numbers.

    Args:
        kept: indices of the prompts that the numbers are of.
    """
    from evaluation.judging.chat_judge import SAME
    from evaluation.metrics.win_rate import not_judged

    found = []
    for answers in every:
        for opponent, all_outcomes in answers.outcomes.items():
            outcomes = [all_outcomes[i] for i in kept]
            whose = "the ground truth" if opponent == TRUTH else f"those of {opponent}"
            of_these = f"of {len(outcomes)} {answers.decoding} answers of {answers.model}"
            if same := outcomes.count(SAME):
                found.append(
                    f"{same} {of_these} are the same as {whose}: each counts as a tie, and the judge was not asked."
                )
            for reason, number in not_judged(outcomes).items():
                found.append(f"{number} {of_these} against {whose} are in no win rate: {reason}.")
    for answers in every:
        for reason, number in (answers.second.unscored(kept) if answers.second else {}).items():
            found.append(
                f"{number} {answers.decoding} answers of {answers.model} are in no reverse KL or NLL: {reason}."
            )
    by_text = sorted({a.model for a in every if a.second is not None and a.second.by == "text"})
    if by_text:
        found.append(
            f"Reverse KL and NLL of {', '.join(by_text)}: the second model has another tokenizer, so it scored the "
            "text as it tokenises it; log Q is of the tokens that were sampled, one of many ways to write the text."
        )
    sampled = [a.samples[i] for a in every if a.decoding == "sample" for i in kept]
    cut = any(sample.finish_reason == "length" for sample in sampled)
    if "reverse_kl" in metrics and cut:
        found.append("Reverse KL: samples that hit the length limit count up to the limit, under both models.")
    return found


def _refuse_other_files(folder: "Folder", store: "Store") -> None:
    from evaluation.report import FILES

    names, folders = folder.names(), set(FOLDERS)
    if store.path.startswith(f"{folder.path}/"):
        folders.add(store.path.removeprefix(f"{folder.path}/").partition("/")[0])
    if not names <= folders and (JOB_FILE not in names or not names <= {JOB_FILE, *folders, *FILES}):
        raise UserError(f"output directory '{folder.path}' already holds other files. Choose another --out.")


def _refuse_other_evaluation(folder: "Folder", job: dict[str, Any]) -> None:
    """Metrics, decodings and alphas may be added for the same models and prompts; the report is made anew."""
    if JOB_FILE not in folder.names():
        return
    there = json.loads(folder.read(JOB_FILE))
    for what in ("models", "data"):
        if there.get(what) != without_secrets(job[what]):
            raise UserError(
                f"output directory '{folder.path}' already holds an evaluation of other {what}. Choose another --out."
            )


if __name__ == "__main__":
    sys.exit(main())
