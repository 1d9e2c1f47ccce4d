"""`python -m negatives_gen verify DIR`: is the set what its manifest says, and does the reference model agree?"""

import random
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from data.command.errors import UserError, exit_on_user_error, first_line
from data.command.library_output import library_output_to
from data.command.log import start_logging
from data.command.options import load_config, option, resolve_path
from data.command.privacy import scrub
from data.command.terminal import say
from data.command.usage import answered
from data.command.values import require_positive
from data.command.wording import counted
from data.manifest import MANIFEST, REJECTS, Manifest, read_manifest
from data.parquet import Unreadable, read_parquet
from data.schema import NULLABLE_IN_REJECTS, Group, group_from_row
from data.soundness import id_problems, length_problems, null_problems, unreadable
from data.sources.tokenise import tokenise_continuations
from data.storage import Folder, sha256
from data.tokens import described_ends, marks_of
from negatives_gen.verbs import checks

USAGE = "python -m negatives_gen verify DIR [--model MODEL] [--sample N]"
ABOUT = """
Check a negative set: manifest, files, checksums, schema, counts, ids, tokens and numbers, shard by shard, and for some
groups the log-probabilities against the reference model. A line per check says ok, FAILED or left out; the exit code is
1 if one failed.
"""

SHOWN_PROBLEMS = 3
SEED = 0  # of the draw of groups to score again


@dataclass
class VerifyConfig:
    """What to check beside the files."""

    model: str | None = option(None, "the reference model, if it is not where the manifest says", metavar="PATH")
    sample: int = option(16, "groups, drawn at random, whose log-probabilities are computed again")
    trust_remote_code: bool = option(False, "run Python code that comes with the model (true only if you trust it)")

    def check(self) -> None:
        require_positive(self, "sample")


@dataclass
class Report:
    """Prints each check once it is done, and remembers whether one failed."""

    failed: list[str] = field(default_factory=list)

    def say(self, check: str, problems: list[str], summary: str) -> None:
        if not problems:
            _print(f"ok       {check}: {summary}")
            return
        self.failed.append(check)
        more = len(problems) - SHOWN_PROBLEMS
        for problem in problems[:SHOWN_PROBLEMS]:
            _print(f"FAILED   {check}: {problem}")
        if more > 0:
            _print(f"FAILED   {check}: and {more} more")

    def left_out(self, check: str, why: str) -> None:
        _print(f"left out {check}: {why}")


@exit_on_user_error
def main(argv: list[str] | None = None) -> int | None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, VerifyConfig, usage=USAGE, about=ABOUT):
        return None
    if not argv or argv[0].startswith("-"):
        raise UserError("python -m negatives_gen verify needs the negative set: verify DIR [--model MODEL] ...")
    config = load_config(VerifyConfig, argv[1:], command="python -m negatives_gen verify")
    start_logging()
    return 1 if verify(argv[0], config) else 0


def verify(path: str, config: VerifyConfig) -> list[str]:
    """Check a set and print what was found.

    Returns:
        The names of the checks that failed.

    Raises:
        UserError: there is no finished set, or --model is not its reference model.
    """
    config.check()
    folder, report = Folder(resolve_path(path)), Report()
    manifest = read_manifest(folder, current=True)
    problems = checks.manifest_problems(manifest, folder.read(MANIFEST))
    report.say("manifest", problems, _about(manifest))
    if problems:
        report.left_out("the rest", "it cannot be judged by this manifest. Restore manifest.json, then verify again")
        return report.failed

    model = _reference(manifest, config, report)
    report.say("files", checks.foreign_files(folder.names(), manifest), "none is foreign")
    sample = _check_shards(folder, manifest, model, config, report)
    if model and report.failed:
        report.left_out("log-probabilities", "the set is damaged")
    elif model:
        _check_model_agrees(model, manifest, sample, config, report)
    return report.failed


def _about(manifest: Manifest) -> str:
    shards, groups = counted(len(manifest.shards), "shard"), counted(manifest.counts["rows_written"], "group")
    return f"{shards}, schema version {manifest.schema_version}: {groups} from {manifest.origin}"


def _check_shards(
    folder: Folder, manifest: Manifest, model: str | None, config: VerifyConfig, report: Report
) -> list[Group]:
    """Check every shard, one in memory at a time, and the rejects. Returns the sampled groups."""
    from data.models import vocabulary_size

    damaged, schema, counts, tokens, numbers, ids = [], [], [], [], [], []
    unique, sample, rows_before, total = checks.UniqueIds(), [], 0, manifest.counts["rows_written"]
    drawn = set(random.Random(SEED).sample(range(total), min(config.sample, total)))
    vocabulary, context = vocabulary_size(model) if model else None, _context(manifest, model)
    job = manifest.job
    for record in manifest.shards:
        table = _intact(folder, record.file, record.sha256, damaged, schema, size=record.bytes)
        if table is not None:
            if wrong := checks.schema_problems(table, manifest.signals, manifest.schema_version):
                schema += [f"{record.file}: {problem}" for problem in wrong]
            else:
                nulls = null_problems(table, only_of=manifest.only_of)
                strange = id_problems(table, vocabulary)
                schema += [f"{record.file}: {problem}" for problem in nulls]
                schema += checks.split_problems(table, record.file, job["data"].get("split") or "all")
                counts += checks.count_problems(table, record, job["strategies"])
                tokens += [f"{record.file}: {problem}" for problem in strange]
                tokens += [f"{record.file}: {problem}" for problem in length_problems(table, context)]
                tokens += checks.token_problems(table, record.file, described_ends(job["tokenizer"]))
                numbers += checks.number_problems(table, record.file, manifest.signals, manifest.only_of)
                tokens += [] if nulls else checks.support_problems(table, record.file, job)
                ids += unique.add(table["id"].to_pylist(), record.file)
                rows = [i for i in range(table.num_rows) if rows_before + i in drawn]
                if not nulls:
                    sample += [group_from_row(row) for row in table.take(pa.array(rows, pa.int64())).to_pylist()]
        rows_before += record.rows
    rejects = _intact(folder, REJECTS, manifest.rejects["sha256"], damaged, schema)
    if rejects is not None:
        if wrong := checks.reject_problems(rejects, manifest.counts):
            counts += [f"{REJECTS}: {problem}" for problem in wrong]
        else:
            schema += [f"{REJECTS}: {problem}" for problem in null_problems(rejects, NULLABLE_IN_REJECTS)]
            strange = [*id_problems(rejects, vocabulary), *length_problems(rejects, context)]
            tokens += [f"{REJECTS}: {problem}" for problem in strange]
    read = counted(len(unique), "group")
    report.say("checksums", damaged, f"{counted(len(manifest.shards), 'shard')} and {REJECTS}")
    report.say("schema", schema, f"signals {', '.join(manifest.signals)}")
    report.say(
        "counts",
        counts,
        f"{counted(manifest.counts['rows_read'], 'row')} read, {counted(total, 'group')}, the rest rejected",
    )
    report.say("ids", ids + unique.repeated(), f"{read}, no id twice")
    report.say("tokens", tokens, f"{read}, none empty, ground truths end with EOS and nothing goes on after it")
    report.say("numbers", numbers, f"{read}, all finite")
    return sample


def _context(manifest: Manifest, model: str | None) -> int:
    """Tokens of the longest sequence that the set was made for, and that the reference model, if it is there, takes."""
    from data.models import context_length

    stated = manifest.job["data"].get("context")
    bound = stated if type(stated) is int and stated > 0 else sys.maxsize
    return context_length(model, bound) if model else bound


def _intact(
    folder: Folder, file: str, expected: str, damaged: list[str], strange: list[str], *, size: int | None = None
) -> pa.Table | None:
    """The content of a file, or None with a problem in one of the lists."""
    try:
        content = folder.read(file)
    except FileNotFoundError:
        damaged.append(f"{file} is missing")
        return None
    except (OSError, UserError) as error:
        damaged.append(f"{file} cannot be read ({first_line(error)})")
        return None
    if size is not None and len(content) != size:
        damaged.append(f"{file} has {len(content)} bytes, the manifest says {size}")
    elif sha256(content) != expected:
        damaged.append(f"{file} has SHA-256 {sha256(content)[:16]}, the manifest says {expected[:16]}")
    else:
        try:
            table = read_parquet(content)
        except Unreadable as error:
            strange.append(f"{file} is no Parquet file that can be read ({first_line(error)})")
            return None
        if not (why := unreadable(table)):
            return table
        strange.append(f"{file} holds what cannot be read ({why})")
    return None


def _reference(manifest: Manifest, config: VerifyConfig, report: Report) -> str | None:
    """The reference model as a local path or hub id, or None if it is not to be had.

    Raises:
        UserError: --model is another model.
    """
    from data.model_settings import config_hash
    from data.models import (
        chat_template_hash,
        check_model,
        hash_of_all_weights,
        load_tokenizer,
        model_directory,
        tokenizer_hash,
        weights_hash,
    )
    from negatives_gen.job.job import local_path

    identity = manifest.job["model"]
    name = config.model or identity["name"]
    model = local_path(name)
    try:
        check_model(model)
        tokenizer, stored = load_tokenizer(model, config.trust_remote_code), manifest.job["tokenizer"]
        weights = weights_hash(model)
        if weights != identity["weights_sha256"] == hash_of_all_weights(model):
            weights = identity["weights_sha256"]  # as sets from before 0.6 have it
        config_sha256 = identity.get("config_sha256")
        found = {
            "weights": (weights, identity["weights_sha256"]),
            "tokenizer": (tokenizer_hash(tokenizer), stored["sha256"]),
            "ends": tuple(_listed(ends) for ends in (marks_of(tokenizer).ends, described_ends(stored))),
            "config.json": (config_hash(model_directory(model), identity), config_sha256),
            "chat template": (str(chat_template_hash(tokenizer)), str(stored.get("chat_template_sha256"))),
        }
    except UserError as error:
        if config.model:
            raise
        report.left_out("log-probabilities", f"{error} Give the reference model with --model.")
        return None
    problems = [
        f"'{name}' has {what} {here[:16]}, the manifest says {there[:16]}"
        for what, (here, there) in found.items()
        if there is not None and here != there
    ]
    if problems and config.model:
        raise UserError(f"--model is not the set's reference model: {'; '.join(problems)}. Give that one, or none.")
    report.say("model", problems, f"'{name}' is the reference model")
    return None if problems else model


def _check_model_agrees(
    model: str, manifest: Manifest, sample: list[Group], config: VerifyConfig, report: Report
) -> None:
    """Log-probabilities and texts of the sampled groups."""
    from data.models import load_tokenizer
    from negatives_gen.models.loading import load_scorer
    from trainer.scoring.continuations import Continuations

    dtype = manifest.job["model"]["scorer_dtype"]
    with library_output_to(None, "log"):
        scorer = load_scorer(model, dtype=dtype, trust_remote_code=config.trust_remote_code)
        scores = scorer.score([Continuations(g.prompt_ids, [ids for ids, _ in _scored(g)]) for g in sample])
    tokenizer, problems, texts, worst = load_tokenizer(model, config.trust_remote_code), [], [], 0.0
    ends = marks_of(tokenizer).ends
    for group, logps in zip(sample, scores, strict=True):
        for (ids, stored), logp in zip(_scored(group), logps, strict=True):
            off = abs(logp - stored)
            worst = max(worst, off)
            if not off <= checks.logp_bound(len(ids)):
                problems.append(f"group {group.id}: {stored:.4f} stored, {logp:.4f} computed for {len(ids)} tokens")
        said = [(group.prompt_ids, group.prompt), (group.response_ids, group.response)]
        for ids, text in [*said, *((c.ids, c.text) for c in group.negatives)]:
            if not _says(tokenizer, ids, text, ends):
                texts.append(f"group {group.id}: ids that do not say {text[:40]!r}")
    bound = f"{checks.LOGP_BOUND} + {checks.LOGP_BOUND_PER_TOKEN} per token"
    report.say(
        "log-probabilities",
        problems,
        f"{counted(len(sample), 'group')}, off by {worst:.1g} nats at most (allowed {bound})",
    )
    report.say("texts", texts, f"{counted(len(sample), 'group')}, ids and texts say the same")


def _scored(group: Group) -> Iterable[tuple[list[int], Any]]:
    """The group's continuations with their stored log-probabilities, the ground truth first."""
    return [(group.response_ids, group.reference_logp), *((c.ids, c.reference_logp) for c in group.negatives)]


def _listed(ends: Iterable[int]) -> str:
    return " ".join(map(str, sorted(ends)))


def _says(tokenizer: Any, ids: list[int], text: str, ends: Collection[int]) -> bool:
    """Whether ids and text are one, by decoding or, where that loses something, by encoding."""
    if text.strip() in tokenizer.decode(ids, skip_special_tokens=True):
        return True
    bare = ids[:-1] if ids[-1] in ends else ids
    spelled = [tokenizer(text, add_special_tokens=added)["input_ids"] for added in (True, False)]
    return any(found in (ids, bare) for found in (*spelled, *tokenise_continuations(tokenizer, [text])))


def _print(line: str) -> None:
    say(scrub(line.replace("\n", " ")))
