"""The job: a configuration in, a negative set out, through the pipeline."""

import logging
import os
from collections.abc import Callable
from typing import Any

from data.command.errors import UserError
from data.command.options import in_ray_job, resolve_path
from data.command.privacy import without_secrets
from data.manifest import Manifest, read_manifest
from data.models import chat_template_hash, check_model, context_length, load_tokenizer, tokenizer_hash, weights_hash
from data.schema import Reject
from data.shards import NegativeSetWriter
from data.sources.examples import READERS, SPLIT_SEED, Source, open_source
from data.sources.prepare import describe_rejects
from data.sources.tasks import describe_task, task_of
from negatives_gen.config import GenerateConfig, StrategyOptions
from negatives_gen.job.actors import Components, Work
from negatives_gen.job.card import push_to_hub, require_disk, write_card
from negatives_gen.job.inputs import Shard, StagedShards, stage_inputs
from negatives_gen.job.pipeline import run_pipeline
from negatives_gen.job.progress import Progress
from negatives_gen.models.embedder import REFERENCE
from negatives_gen.signals import SignalOptions, signal_class

log = logging.getLogger(__name__)


def generate(config: GenerateConfig, components: Components | None = None) -> Manifest:
    """Make the negative set that `config` describes, or finish it if an earlier run was interrupted.

    Args:
        components: what stands in for engine, scorer or signals; in tests and benchmarks.

    Raises:
        UserError: bad configuration, model or data, or an output directory that holds another job. A job that fails
            before its first shard is finished gives its directory up.
    """
    config.check()
    source = open_source(local_path(config.dataset), config.task, config.split, config.limit, config.streaming)
    work = make_work(config, source, components)

    def prepare() -> tuple[int, dict[str, Any]]:
        staged = stage_inputs(work.writer.folder, source, config.groups_per_shard)
        if not work.writer.finished():
            require_usable(work, staged.shards, f"data set '{config.dataset}'")
        return staged.shards, {"examples": staged.examples, "examples_sha256": staged.examples_sha256}

    return run_job(config, config.out, work, prepare)


def make_work(config: GenerateConfig, source: Source, components: Components | None = None) -> Work:
    """What the stages need to know, with all that decides the set in the writer's job. Raises UserError."""
    model = local_path(config.model)
    check_model(model)
    tokenizer = load_tokenizer(model, config.trust_remote_code)
    context = serving_context(config, model, tokenizer)
    strategies, signals = config.strategy_settings(), config.signal_names()
    signal_options = make_signal_options(config, model)
    job = without_secrets(
        {
            "model": {"name": config.model, "weights_sha256": weights_hash(model), "scorer_dtype": config.scorer_dtype},
            "tokenizer": {
                "sha256": tokenizer_hash(tokenizer),
                "eos_token_id": tokenizer.eos_token_id,
                "chat_template_sha256": chat_template_hash(tokenizer),
            },
            "data": {
                "name": config.dataset,
                **describe_task(config.task),
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
            "signals": signal_identities(config, signals, signal_options),
            "seed": config.seed,
            "groups_per_shard": config.groups_per_shard,
            "engine": config.engine,
        }
    )
    writer = NegativeSetWriter(resolve_path(config.out), job, signals)
    return Work(
        model=model,
        source=StagedShards(writer.folder, config.task, model, context, config.trust_remote_code),
        strategies=strategies,
        signals=signals,
        signal_options=signal_options,
        writer=writer,
        context=context,
        seed=config.seed,
        dtype=config.scorer_dtype,
        engine_options=config.engine,
        trust_remote_code=config.trust_remote_code,
        components=components or Components(),
    )


def run_job(
    config: StrategyOptions, out: str, work: Work, prepare: Callable[[], tuple[int, dict[str, Any]]]
) -> Manifest:
    """Claim the output directory, make the shards that it lacks, and finish the set.

    Args:
        out: the directory as the user wrote it.
        prepare: called once the directory is ours: number of shards, and `Manifest.inputs`.
    """
    if config.push_to_hub:
        require_disk(work.writer.folder.path)  # not after days of work
    manifest = _finished(work.writer, out) or _made(config, work, prepare)
    if config.push_to_hub:
        push_to_hub(work.writer.folder.path, config.push_to_hub)
    return manifest


def _finished(writer: NegativeSetWriter, out: str) -> Manifest | None:
    """The set's manifest if it is complete already; else the directory is ours."""
    if writer.begin():
        return None
    log.info("%s is complete already", out)
    return read_manifest(writer.folder)


def _made(config: StrategyOptions, work: Work, prepare: Callable[[], tuple[int, dict[str, Any]]]) -> Manifest:
    writer = work.writer
    try:
        num_shards, inputs = prepare()
        finished = writer.finished()
        todo = [index for index in range(num_shards) if index not in finished]
        progress = Progress(num_shards, len(finished), config.log_format)
        if todo:
            run_pipeline(work, todo, num_engines=config.num_engines, on_written=progress.shard)
    except UserError:
        writer.release()
        raise
    manifest = writer.collect(num_shards, inputs)
    write_card(writer.folder, manifest)
    writer.seal(manifest)
    return manifest


def serving_context(config: GenerateConfig, model: str, tokenizer: Any) -> int:
    """Longest prefix + continuation: vLLM serves no more than the tokenizer's limit and engine.max_model_len say."""
    limits = (
        context_length(model),
        tokenizer.model_max_length,
        config.engine.get("max_model_len"),
        config.max_length,
    )
    return min(int(limit) for limit in limits if limit)


def make_signal_options(config: StrategyOptions, model: str) -> SignalOptions:
    """The signals' models as local paths or hub ids."""

    def local(name: str | None) -> str | None:
        return name and local_path(name)

    return SignalOptions(
        model=model,
        embedder=REFERENCE if config.embedder == REFERENCE else local_path(config.embedder),
        reward_model=local(config.reward_model),
        bertscore_model=local(config.bertscore_model),
        trust_remote_code=config.trust_remote_code,
    )


def signal_identities(config: StrategyOptions, names: list[str], options: SignalOptions) -> dict[str, dict[str, Any]]:
    """What decides each signal, under the names that the user gave. Raises UserError if a model cannot be reached."""
    given = {"embedding": config.embedder, "reward": config.reward_model, "bertscore": config.bertscore_model}
    identities = {name: signal_class(name).identity(options) for name in names}
    for name, identity in identities.items():
        if name in given:
            identity["name"] = given[name]
    return identities


def require_usable(work: Work, num_shards: int, where: str) -> None:
    """Raise UserError if no row of any shard is usable, before an engine starts."""
    rejects: list[Reject] = []
    for index in range(num_shards):
        shard: Shard = work.source.load(index)
        if shard.groups:
            return
        rejects += shard.rejects
    raise UserError(f"no usable row in {where}: {describe_rejects(rejects)}. Fix the data or choose other rows.")


def local_path(name: str) -> str:
    """A path as an absolute one; a hub id or an embedded data set as it is."""
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(tuple(READERS))
    if looks_like_path or os.path.exists(name):
        return resolve_path(name)
    resolved = resolve_path(name) if "/" in name and in_ray_job() else name
    return resolved if os.path.exists(resolved) else name
