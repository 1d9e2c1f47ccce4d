"""`python -m evaluation.run`: compare checkpoints on held-out prompts."""

import json
import logging
import sys
from typing import TYPE_CHECKING, Any

from data.claim import CLAIMS, Claim, claimed
from data.command.errors import UserError, exit_on_user_error
from data.command.library_output import library_output_to
from data.command.log import start_logging
from data.command.options import enter_root, load_config, resolve_path
from data.command.privacy import without_secrets
from data.command.terminal import say
from data.command.trackers import check_trackers, report, reporting_to
from data.command.usage import answered
from data.shape import parse_json
from evaluation.config import LOG, EvaluateConfig
from evaluation.metrics.base import columns_of
from evaluation.metrics.columns import as_asked, in_order

if TYPE_CHECKING:
    from data.storage import Folder
    from evaluation.answers.cache import Store

log = logging.getLogger(__name__)

JOB_FILE = "evaluation_job.json"
# What an evaluation makes in --out, before it is finished too.
FOLDERS = {"store", "ensembles", CLAIMS, LOG}

USAGE = "python -m evaluation.run --model NAME=PATH [NAME=PATH ...] --dataset D --out DIR [...]"
ABOUT = """
Compares checkpoints on held-out prompts: their answers, made by vLLM, and what they know themselves, by the metrics of
--metrics; with --sweep also weight-space ensembles over alpha. A judge is any OpenAI-compatible server, or a local
reward model. Prints a table and writes report.md, report.json and report.html. What was generated, scored and judged
is kept in --store and never made, or paid for, twice: the same command goes on where it was interrupted. At SIGINT
(Ctrl+C) and SIGTERM the requests to a judge that are under way are waited for and kept; SIGKILL, or a second Ctrl+C,
loses these.
"""


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, EvaluateConfig, usage=USAGE, about=ABOUT):
        return
    config = load_config(EvaluateConfig, argv, command="python -m evaluation.run")
    enter_root()
    config.check()
    start_logging()
    say(evaluate(config))
    say(f"report: {config.out}/report.md, report.html, report.json")


def evaluate(config: EvaluateConfig) -> str:
    """Evaluate every checkpoint and write the report; returns the table.

    Raises:
        UserError: unusable model, data, judge or negative set, or an output directory that holds something else or in
            which another run is at work. Of a judge or a budget that fails in the middle too: the store keeps what was
            done.
    """
    from evaluation.answers.cache import Store

    with claimed(resolve_path(config.out)) as claim:
        folder = claim.folder
        store = Store(resolve_path(config.store) if config.store else f"{folder.path}/store")
        _refuse_other_files(folder, store)
        trackers, settings = check_trackers(config.report_to), {**vars(config), "metric_options": None}
        # A tracker may ask a person for a key, so it starts before libraries write elsewhere.
        with reporting_to(trackers, folder.path, settings), library_output_to(folder, LOG, verbose=config.verbose):
            return _evaluate(config, claim, store)


def _evaluate(config: EvaluateConfig, claim: Claim, store: "Store") -> str:
    from data.hub import DATASET, require_hub
    from data.manifest import environment
    from evaluation.answers.answer_sets import make_answers
    from evaluation.measure import gather
    from evaluation.prepared import describe_evaluation, describe_models, more_decodings, prepare
    from evaluation.publish_report import publish_report
    from evaluation.report import Results, write_report
    from evaluation.samples import sample_rows
    from evaluation.sweep import describe_sweep, make_ensembles

    folder = claim.folder
    if config.push_to_hub:
        require_hub(config.push_to_hub, DATASET)  # not after hours of work
    chosen = config.chosen_metrics()
    folder.remove_temporary()  # of a run that was killed while it wrote
    evaluation = prepare(config, store)
    metrics = [metric(config.metric_options[metric.name], evaluation) for metric in chosen]
    setup = describe_evaluation(config, evaluation, metrics)
    _refuse_other_evaluation(folder, setup)
    claim.check()
    folder.write(JOB_FILE, json.dumps(without_secrets(setup), indent=2).encode())

    ensembles = make_ensembles(config, evaluation)
    checkpoints = [*evaluation.checkpoints, *ensembles]
    answer_sets = make_answers(
        checkpoints, evaluation.decodings, more_decodings(evaluation, metrics), store=store,
        max_new_tokens=config.max_new_tokens, seed=config.seed, engine=config.engine,
    )  # fmt: skip
    gathered = gather(metrics, checkpoints, answer_sets)

    measurements = gathered.measurements(evaluation.test, evaluation.baseline)
    report({"/".join(filter(None, (m.model, m.decoding, m.metric, m.against))): m.estimate.mean for m in measurements})
    job = {**setup, "models": describe_models(evaluation, ensembles), **gathered.spent()}
    if evaluation.validation is not None:
        alphas = dict(zip([e.name for e in ensembles], config.alphas(), strict=True))
        chosen_on = gathered.measurements_of_answers(evaluation.validation)
        differences = gathered.paired(evaluation.validation)
        sweep = describe_sweep(alphas, chosen_on, differences, evaluation.decodings[0].name, chosen)
        job |= {"sweep": {**sweep, "validation_prompts": len(evaluation.validation.prompts)}}
    columns = [column for metric in metrics for column in [*columns_of([type(metric)]), *metric.more_columns()]]
    arranged = as_asked if config.metrics else in_order
    results = Results(
        without_secrets(job), environment(), measurements, sample_rows(gathered, evaluation.test),
        gathered.notes(evaluation.test), arranged(columns),
        gathered.paired(evaluation.test),
    )  # fmt: skip
    claim.check()
    shown = write_report(folder, results)
    if config.push_to_hub:
        publish_report(folder, config.push_to_hub)
    return shown


def _refuse_other_files(folder: "Folder", store: "Store") -> None:
    from data.storage import TEMPORARY_PREFIX
    from evaluation.report import FILES

    names, folders = {name for name in folder.names() if not name.startswith(TEMPORARY_PREFIX)}, set(FOLDERS)
    if store.path.startswith(f"{folder.path}/"):
        folders.add(store.path.removeprefix(f"{folder.path}/").partition("/")[0])
    if not names <= folders and (JOB_FILE not in names or not names <= {JOB_FILE, *folders, *FILES}):
        raise UserError(f"output directory '{folder.path}' already holds other files. Choose another --out.")


def _refuse_other_evaluation(folder: "Folder", job: dict[str, Any]) -> None:
    """Metrics, decodings and alphas may be added for the same models and prompts; the report is made anew."""
    if JOB_FILE not in folder.names():
        return
    content = folder.read_if_there(JOB_FILE)
    try:
        there = parse_json(content or b"")
        if not isinstance(there, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise UserError(f"'{folder / JOB_FILE}' is damaged ({error}). Choose another --out, or remove it.") from error
    for what in ("models", "data"):
        if there.get(what) != without_secrets(job[what]):
            raise UserError(
                f"output directory '{folder.path}' already holds an evaluation of other {what}. Choose another --out."
            )


if __name__ == "__main__":
    sys.exit(main())
