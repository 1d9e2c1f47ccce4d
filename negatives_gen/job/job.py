"""The job: a configuration in, a negative set out, through the pipeline."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from data.command.entries import undecided
from data.command.errors import UserError
from data.command.extras import require_package
from data.command.library_output import library_output_to
from data.command.options import ROOT_VARIABLE, resolve_path
from data.command.privacy import without_secrets
from data.command.trackers import check_trackers, report, reporting_to, reports
from data.command.wording import counted
from data.hub import DATASET, push_folder, require_hub
from data.manifest import Manifest, read_manifest
from data.model_settings import config_hash, config_words_hash
from data.models import (
    chat_template_hash,
    check_causal,
    context_length,
    load_tokenizer,
    model_directory,
    tokenizer_hash,
    warn_of_cap,
    weights_hash,
)
from data.schema import Group, Reject
from data.set_directory import LOG
from data.set_writer import NegativeSetWriter
from data.sources.data_files import looks_local
from data.sources.examples import Source
from data.sources.prepare import describe_rejects
from data.sources.splits import SPLIT_SEED
from data.sources.tasks import task_of
from data.tokens import describe_ends, marks_of, text_behind
from negatives_gen.config import GenerateConfig, RunOptions
from negatives_gen.job.actors import Components, Work
from negatives_gen.job.attempts import Inside, ShardsSetAside, forget
from negatives_gen.job.card import CARD, card, require_disk
from negatives_gen.job.inputs import Kind, Shard, StagedShards, stage_inputs
from negatives_gen.job.pipeline import run_pipeline
from negatives_gen.job.progress import Progress
from negatives_gen.job.sampling_model import SamplingModel, sampling_model
from negatives_gen.signals import SIGNALS, Reference, Signal, job_identity
from negatives_gen.strategies import STRATEGIES

log = logging.getLogger(__name__)

# Another name, path or spelling of the same content is the same job: hashes decide. Of a stream there is no hash.
DATA_NAMES = ("data.name", "data.test_dataset")
NAMES = ("model.name", "model.config_words_sha256", "sampler.name", *DATA_NAMES, "parent.name")
# Puts the inputs of the shards where workers find them: number of shards, and `Manifest.inputs`.
Preparation = Callable[[], tuple[int, dict[str, Any]]]


def generate(config: GenerateConfig, components: Components | None = None) -> Manifest:
    """Make the negative set that `config` describes, or finish it if an earlier run was interrupted.

    Args:
        components: what stands in for engine, scorer or signals; in tests and benchmarks.

    Raises:
        UserError: bad configuration, model or data, or an output directory that holds another job. A job that fails
            before its first shard is finished gives its directory up.
    """
    config.check()
    source = config.open_source(config.dataset, config.split, config.limit, config.streaming, locate=local_path)
    work = make_work(config, source, components)

    def prepare() -> tuple[int, dict[str, Any]]:
        staged = stage_inputs(work.writer, source, config.groups_per_shard)
        if not work.writer.finished():
            require_usable(work, staged.shards, f"data set '{config.dataset}'")
            try_signals(work, staged.shards)
        return staged.shards, {"examples": staged.examples, "examples_sha256": staged.examples_sha256}

    return run_job(config, config.out, work, prepare)


def make_work(config: GenerateConfig, source: Source, components: Components | None = None) -> Work:
    """What the stages need to know, with all that decides the set in the writer's job. Raises UserError."""
    model = local_path(config.model)
    check_causal(model)
    tokenizer = load_tokenizer(model, config.trust_remote_code)
    sampler = None
    if config.sampler is not None:
        named = config.sampler
        sampler = sampling_model(named, local_path(named), model, tokenizer, config.trust_remote_code)
    context = serving_context(config, model, tokenizer, sampler)
    strategies, signals = config.strategy_settings(), config.used_signal_options()
    reference = Reference(model, config.trust_remote_code)
    job = without_secrets(
        {
            "model": {
                "name": config.model,
                "weights_sha256": weights_hash(model),
                "config_sha256": config_hash(model_directory(model)),
                "config_words_sha256": config_words_hash(model_directory(model)),
                "scorer_dtype": config.scorer_dtype,
            },
            **({"sampler": sampler.identity()} if sampler else {}),
            "tokenizer": {
                "sha256": tokenizer_hash(tokenizer),
                **describe_ends(marks_of(tokenizer)),
                "chat_template_sha256": chat_template_hash(tokenizer),
            },
            "data": {
                "name": config.dataset,
                **config.describe_source(source),
                "split": config.split,
                "split_seed": SPLIT_SEED,
                "limit": config.limit,
                "streaming": config.streaming,
                "examples": source.num_examples,
                "examples_sha256": source.fingerprint,
                "context": context,
                "over_long": task_of(config.task).over_long,
            },
            "strategies": strategies,
            "signals": signal_identities(signals, reference),
            "seed": config.seed,
            "groups_per_shard": config.groups_per_shard,
            "engine": config.engine,
        }
    )
    writer = make_writer(config.out, job, list(signals))
    return Work(
        model=model,
        source=StagedShards(writer.folder, config.task, model, context, config.trust_remote_code),
        strategies=for_stages(strategies, job),
        signals={name: with_local_paths(options) for name, options in signals.items()},
        writer=writer,
        context=context,
        seed=config.seed,
        dtype=config.scorer_dtype,
        engine_options=config.engine,
        trust_remote_code=config.trust_remote_code,
        sampler=sampler,
        outside=outside_paths(strategies, signals),
        components=components or Components(),
    )


def run_job(config: RunOptions, out: str, work: Work, prepare: Preparation) -> Manifest:
    """Claim the output directory, make the shards that it lacks, and finish the set.

    Args:
        out: the directory as the user wrote it.
        prepare: called once the directory is ours.
    """
    require_package("ray", "stage 1")
    if config.push_to_hub:
        require_disk(work.writer.folder.path)
        require_hub(config.push_to_hub, DATASET)  # not after days of work
    manifest = _finished(work.writer, out) or _made(config, out, work, prepare)
    if config.push_to_hub:
        push_folder(work.writer.folder.path, config.push_to_hub, DATASET)
    return manifest


def _finished(writer: NegativeSetWriter, out: str) -> Manifest | None:
    """The set's manifest if it is complete already; else the directory is ours."""
    if writer.begin():
        return None
    log.info("%s is complete already", out)
    return read_manifest(writer.folder)


def _made(config: RunOptions, out: str, work: Work, prepare: Preparation) -> Manifest:
    writer = work.writer
    try:
        # A tracker may ask a person for a key, so it starts before libraries write elsewhere.
        with reporting_to(check_trackers(config.report_to), out, writer.job):
            num_shards, inputs = _shards_made(config, work, prepare)
        manifest = writer.collect(num_shards, inputs)
        writer.publish(CARD, card(manifest).encode())
        writer.seal(manifest)
        return manifest
    except ShardsSetAside:  # its rows stay, to be looked at
        raise
    except UserError:
        writer.release()
        raise
    finally:
        writer.end()


def _shards_made(config: RunOptions, work: Work, prepare: Preparation) -> tuple[int, dict[str, Any]]:
    """Make the shards that the directory lacks. Returns what `prepare` does."""
    writer = work.writer
    with library_output_to(writer.folder, LOG, verbose=config.verbose) as output:
        num_shards, inputs = prepare()
        finished = writer.finished()
        todo = [index for index in range(num_shards) if index not in finished]
        forget(writer.folder)
        progress = Progress(num_shards, len(finished), config.log_format)
        if reports():
            for entry in filter(None, map(writer.entry, sorted(finished))):
                progress.count(entry)
        inside = Inside(writer.folder, progress.loading, progress.inside)

        def on_written(
            index: int, rows: int, rejected: int, tokens: int, occupancy: float | None, spent: Mapping[str, int]
        ) -> None:
            progress.shard(index, rows, rejected, tokens, occupancy)
            progress.spent.update(spent)
            if reports() and (entry := writer.entry(index)):
                report(progress.values(entry), step=progress.done)

        def on_pause() -> bool:
            output.relay()
            return inside.look()

        if todo:
            run_pipeline(
                work,
                todo,
                num_engines=config.num_engines,
                stall_timeout=config.stall_timeout,
                on_written=on_written,
                on_pause=on_pause,
            )
    return num_shards, inputs


def serving_context(config: GenerateConfig, model: str, tokenizer: Any, sampler: SamplingModel | None) -> int:
    """Longest prefix + continuation: vLLM serves no more than the tokenizer's limit and engine.max_model_len say."""
    limits = (
        context_length(model, config.max_length),
        context_length(sampler.model, config.max_length) if sampler else None,
        tokenizer.model_max_length,
        config.engine.get("max_model_len"),
    )
    found = min(int(limit) for limit in limits if limit)
    warn_of_cap(config.max_length, {config.model: found})
    return found


def with_local_paths(options: Any) -> Any:
    """Options with what they name (`is_name`) as absolute paths or hub ids, for workers in other directories."""
    names = {field.name: field.metadata for field in dataclasses.fields(options) if field.metadata.get("is_name")}
    values = {name: getattr(options, name) for name in names}
    paths = {
        name: local_path(value)
        for name, value in values.items()
        if isinstance(value, str) and value not in names[name].get("words", ())
    }
    return dataclasses.replace(options, **paths)


def signal_identities(options: Mapping[str, Any], reference: Reference) -> dict[str, dict[str, Any]]:
    """What a manifest says of each signal. Raises UserError if a model cannot be reached.

    Args:
        options: signal -> its options, with the names that the user gave.
    """
    return {name: job_identity(name, named, with_local_paths(named), reference) for name, named in options.items()}


def make_writer(
    out: str, job: dict[str, Any], signals: Sequence[str], parent: dict[str, Any] | None = None
) -> NegativeSetWriter:
    """The writer of a set, which knows by the entries' marks what of the job does not decide the content."""
    undecided_keys = [n for n in NAMES if n not in DATA_NAMES or job.get("data", {}).get("examples_sha256")]
    for part, registry, names in (("strategies", STRATEGIES, job["strategies"]), ("signals", SIGNALS, signals)):
        for name in names:
            keys = [*undecided(registry.load(name).Options), "origin.entry"]
            undecided_keys += [f"{part}.{name}.{key}" for key in keys]
    return NegativeSetWriter(resolve_path(out), job, signals, parent, undecided=undecided_keys)


def for_stages(strategies: Mapping[str, dict[str, Any]], job: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The strategies' settings as the stages need them. Raises UserError, see `Strategy.for_job`."""
    return {name: STRATEGIES.load(name).for_job(settings, job) for name, settings in strategies.items()}


def outside_paths(strategies: Iterable[str], signals: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Import paths of those strategies and signals that are not built in, see `Work.outside`."""
    origins = [[STRATEGIES.origin(name) for name in strategies], [SIGNALS.origin(name) for name in signals]]
    found = [tuple(origin["entry"] for origin in some if origin) for some in origins]
    return found[0], found[1]


def require_usable(work: Work, num_shards: int, where: str) -> None:
    """Raise UserError if no row of any shard is usable, before an engine starts."""
    rejects: list[Reject] = []
    for index in range(num_shards):
        shard: Shard = work.source.load(index)
        if shard.groups:
            _warn_of_short_room(work, shard.groups)
            return _warn_of_lost_text(work, shard.groups)
        rejects += shard.rejects
    raise UserError(f"no usable row in {where}: {describe_rejects(rejects)}. Fix the data or choose other rows.")


def try_signals(work: Work, num_shards: int) -> None:
    """Have the signals that mind look at a prompt of each kind. Raises UserError for one that they cannot take."""
    loaded = [(SIGNALS.load(name), options) for name, options in work.signals.items()]
    minding = [
        (signal, options)
        for signal, options in loaded
        if getattr(signal.look_at, "__func__", None) is not Signal.look_at.__func__
    ]
    if not minding:
        return
    kinds: dict[Kind, list[dict[str, str]]] = {}
    for index in range(num_shards):
        kinds |= work.source.kinds(index, kinds)
    for signal, options in minding:
        signal.look_at(options, list(kinds.values()))


def _warn_of_short_room(work: Work, groups: Sequence[Group]) -> None:
    """Say so where prompts leave less of the context than a negative may be long."""
    longest = max((s["max_new_tokens"] for s in work.strategies.values() if "max_new_tokens" in s), default=0)
    short = sum(len(group.prompt_ids) + longest > work.context for group in groups)
    if short:
        log.warning(
            "%d of the first %s leave less than --max_new_tokens %s of a context of %s, where their negatives end",
            short, counted(len(groups), "prompt"), f"{longest:,}", f"{work.context:,}",
        )  # fmt: skip


def _warn_of_lost_text(work: Work, groups: Sequence[Group]) -> None:
    """Say so where ground truths are not what their tokens read as: candidates are texts of tokens."""
    tokenizer = load_tokenizer(work.model, work.trust_remote_code)
    ends = marks_of(tokenizer).ends
    read = [(group.response, text_behind(tokenizer, group.prompt_ids, group.response_ids, ends)) for group in groups]
    lost = [(text, said) for text, said in read if text.split() != said.split()]
    if lost:
        text, said = lost[0]
        log.warning(
            "%d of the first %d ground truths are not what their tokens read as, such as %r for %r: the tokenizer "
            "leaves something out, and signals that compare texts see it",
            len(lost), len(read), said[:40], text[:40],
        )  # fmt: skip


def local_path(name: str) -> str:
    """A path as an absolute one; a hub id or an embedded data set as it is."""
    if looks_local(name) or name.count("/") > 1:
        return resolve_path(name)
    if not (os.path.exists(name) or os.environ.get(ROOT_VARIABLE)):
        return name
    resolved = resolve_path(name)
    return resolved if os.path.exists(resolved) else name
