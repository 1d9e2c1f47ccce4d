"""`python -m evaluation.run`: compare checkpoints on held-out prompts."""

import gc
import json
import logging
import sys
from typing import Any

from data.config import describe_options, load_config, resolve_path
from data.errors import UserError, exit_on_user_error
from data.log import start_logging
from evaluation.config import EvaluateConfig

log = logging.getLogger(__name__)

JOB_FILE = "evaluation_job.json"

HELP = """usage: python -m evaluation.run --model NAME=PATH [--model NAME=PATH ...] --dataset D --out DIR [...]

Greedy answers (vLLM) and ground-truth log-probabilities of each checkpoint on held-out prompts; with --shards also how
it ranks held-out groups of a negative set. Prints a table and writes report.md, report.json and the answers.

options:
{options}
"""


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(HELP.format(options=describe_options(EvaluateConfig)))
        return
    config = load_config(EvaluateConfig, argv, command="python -m evaluation.run")
    config.check()
    start_logging()
    print(evaluate(config))
    print(f"report: {config.out}/report.md")


def evaluate(config: EvaluateConfig) -> str:
    """Evaluate every checkpoint and write the report; returns the table.

    Raises:
        UserError: unusable model, data or negative set, or an output directory that holds something else. Nothing
            has been written then.
    """
    from data.identity import check_model, context_length, load_tokenizer, weights_hash
    from data.manifest import environment
    from data.prepare import describe_rejects, prepare_groups, require_groups
    from data.sources import fingerprint, load_examples
    from data.storage import Folder
    from evaluation.report import markdown, table, to_json
    from negatives_gen.embedder import embedder_identity

    models = config.models()
    for path in models.values():
        check_model(path)
    examples = load_examples(config.dataset, config.task, config.split, config.limit)
    held_out, signal, shards = _held_out_groups(config, models)
    job = {
        "models": {name: {"path": path, "weights_sha256": weights_hash(path)} for name, path in models.items()},
        "data": {
            "name": config.dataset,
            "task": config.task,
            "split": config.split,
            "examples": len(examples),
            "examples_sha256": fingerprint(examples),
        },
        "decoding": {"name": "greedy", "max_new_tokens": config.max_new_tokens},
        "shards": shards,
        "embedder": embedder_identity(config.embedder, "") if config.embedder else None,
    }
    folder = Folder(resolve_path(config.out))
    _refuse_other_content(folder, job)

    prepared: dict[str, list[Any]] = {}
    for name, path in models.items():
        groups, rejects, _ = prepare_groups(examples, config.task, load_tokenizer(path), context_length(path))
        require_groups(groups, rejects, f"data set '{config.dataset}'")
        prepared[name] = groups
        log.info("%s: %d examples, %s", name, len(prepared[name]), describe_rejects(rejects))
    # Models with other contexts or tokenizers reject other rows: compare them on the rows that all of them take.
    common = set.intersection(*({g.id for g in groups} for groups in prepared.values()))
    job["data"]["used"] = len(common)
    if not common:
        raise UserError(f"no row of data set '{config.dataset}' fits all of the models. Compare fewer models.")

    folder.write(JOB_FILE, json.dumps(job, indent=2).encode())
    results: dict[str, dict[str, Any]] = {}
    for number, (name, path) in enumerate(models.items(), start=1):
        groups = [g for g in prepared[name] if g.id in common]
        print(f"  evaluating {name} ({number}/{len(models)}) on {len(groups)} examples", flush=True)
        results[name], answers = _measure(config, path, groups, context_length(path), held_out, signal)
        folder.write(f"answers-{name}.parquet", _answers_file(groups, answers))
    folder.write("report.md", markdown(job, results).encode())
    folder.write("report.json", to_json(job, environment(), results).encode())
    return table(results)


def _measure(
    config: EvaluateConfig, path: str, groups: list[Any], context: int, held_out: list[Any], signal: str
) -> tuple[dict[str, Any], list[Any]]:
    """Metrics and greedy answers of one checkpoint."""
    from evaluation.metrics import answer_metrics, ranking_metrics, truth_metrics
    from evaluation.statistics import Estimate
    from negatives_gen.engine import Engine
    from trainer.logprobs import Scorer

    scorer = Scorer.load(path)
    scored = truth_metrics(scorer, groups)
    if held_out:
        scored |= ranking_metrics(scorer, held_out, signal)
    del scorer
    gc.collect()  # the next engine needs the room
    engine = Engine(path)
    answers = engine.decode(
        [g.prompt_ids for g in groups],
        max_tokens=[min(config.max_new_tokens, context - len(g.prompt_ids)) for g in groups],
    )
    del engine
    gc.collect()
    metrics = answer_metrics(groups, answers, checkable=config.dataset == "facts") | scored
    if config.embedder:
        from negatives_gen.embedder import Embedder

        embedder = Embedder(config.embedder, path)
        truths, ours = embedder.embed([g.response for g in groups]), embedder.embed([a.text for a in answers])
        metrics["similarity"] = Estimate.of((truths * ours).sum(-1).tolist())
    return metrics, answers


def _held_out_groups(config: EvaluateConfig, models: dict[str, str]) -> tuple[list[Any], str, dict[str, Any] | None]:
    """The groups of the negative set that belong to the split, the signal that ranks them, and their identity."""
    from data.identity import load_tokenizer, tokenizer_hash
    from data.shards import NegativeSet

    if config.shards is None:
        return [], "", None
    negatives = NegativeSet(resolve_path(config.shards))
    for path in models.values():
        negatives.check_tokenizer(tokenizer_hash(load_tokenizer(path)), path)
    groups = [g for g in negatives.groups() if config.split in ("all", g.split)]
    if not groups:
        raise UserError(
            f"negative set '{config.shards}' holds no groups of split '{config.split}'. Generate it with --split all "
            f"or --split {config.split}, or evaluate on another --split."
        )
    checksums = [shard.sha256 for shard in negatives.manifest.shards]
    return groups, negatives.signals[0], {"name": config.shards, "groups": len(groups), "sha256": checksums}


def _refuse_other_content(folder: Any, job: dict[str, Any]) -> None:
    names = folder.names()
    if not names:
        return
    if JOB_FILE in names:
        there = json.loads(folder.read(JOB_FILE))
        there["data"].pop("used", None)
        if there == job:
            return
    raise UserError(
        f"output directory '{folder.path}' already holds another evaluation or other files. Choose another --out."
    )


def _answers_file(groups: list[Any], answers: list[Any]) -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"id": g.id, "prompt": g.prompt, "response": g.response, "answer": a.text, "finish_reason": a.finish_reason}
        for g, a in zip(groups, answers, strict=True)
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
