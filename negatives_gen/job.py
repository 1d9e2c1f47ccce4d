"""The job: examples in, a negative set out, through Ray Data."""

import logging
import os
import pickle
import sys
import time
from dataclasses import dataclass
from typing import Any

from data.config import in_ray_job, resolve_path
from data.errors import UserError
from data.identity import check_model, context_length, load_tokenizer, tokenizer_hash, weights_hash
from data.manifest import Manifest, read_manifest
from data.prepare import OVER_LONG_POLICY, prepare_groups, require_groups
from data.schema import Group, Reject
from data.shards import NegativeSetWriter
from data.sources import READERS, SPLIT_SEED, fingerprint, load_examples
from data.strategies import parse_counts
from negatives_gen.autoregressive import AutoregressiveSettings
from negatives_gen.config import GenerateConfig
from negatives_gen.embedder import REFERENCE, SIGNAL, embedder_identity

log = logging.getLogger(__name__)

SCORER_DTYPE = "float32"
Shard = tuple[list[Group], list[Reject]]


def generate(config: GenerateConfig) -> Manifest:
    """Make the negative set that `config` describes, or finish it if an earlier run was interrupted.

    Raises:
        UserError: bad configuration, model or data, or an output directory that holds another job. Nothing has
            been written then.
    """
    config.check()
    model = _local(config.model)
    dataset = _local(config.dataset)
    check_model(model)
    tokenizer = load_tokenizer(model)
    # vLLM serves no more than the tokenizer's own limit and what engine.max_model_len says.
    limits = (context_length(model), tokenizer.model_max_length, config.engine.get("max_model_len"))
    context = min(int(limit) for limit in limits if limit)
    embedder = config.embedder if config.embedder == REFERENCE else _local(config.embedder)
    examples = load_examples(dataset, config.task, config.split, config.limit)
    groups, rejects = prepare_groups(examples, tokenizer, context)
    require_groups(groups, rejects, f"data set '{config.dataset}'")

    settings = AutoregressiveSettings(
        count=parse_counts(config.strategies, "--strategies")["an"],
        top_k=config.top_k,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
    )
    job = {
        "model": {"name": config.model, "weights_sha256": weights_hash(model), "scorer_dtype": SCORER_DTYPE},
        "tokenizer": {"sha256": tokenizer_hash(tokenizer), "eos_token_id": tokenizer.eos_token_id},
        "embedder": embedder_identity(embedder, model) | {"name": config.embedder},
        "data": {
            "name": config.dataset,
            "task": config.task,
            "split": config.split,
            "split_seed": SPLIT_SEED,
            "limit": config.limit,
            "examples": len(examples),
            "examples_sha256": fingerprint(examples),
            "context": context,
            "over_long": OVER_LONG_POLICY,
        },
        "strategies": {"an": vars(settings)},
        "seed": config.seed,
        "groups_per_shard": config.groups_per_shard,
        "engine": config.engine,
    }
    writer = NegativeSetWriter(resolve_path(config.out), job, [SIGNAL])
    if not writer.begin():
        log.info("%s is complete already", config.out)
        return read_manifest(writer.folder)

    shards = cut([e.id for e in examples], groups, rejects, config.groups_per_shard)
    todo = sorted(set(range(len(shards))) - writer.finished())
    log.info("%d examples, %d shards, %d of them to do", len(examples), len(shards), len(todo))
    if todo:
        try:
            _run(config, model, embedder, settings, context, writer, {index: shards[index] for index in todo})
        except UserError:
            writer.release()
            raise
    return writer.finish(len(shards))


def cut(order: list[str], groups: list[Group], rejects: list[Reject], size: int) -> list[Shard]:
    """Shard i holds the examples i * size to (i + 1) * size of the source, as groups or as rejects."""
    queues: dict[str, list[Group | Reject]] = {}
    for row in [*groups, *rejects]:  # a duplicate has the id of an earlier row: first the group, then its rejects
        queues.setdefault(row.id, []).append(row)
    rows = [queues[row_id].pop(0) for row_id in order]
    shards = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        shards.append(([r for r in part if isinstance(r, Group)], [r for r in part if isinstance(r, Reject)]))
    return shards


def _run(
    config: GenerateConfig,
    model: str,
    embedder: str,
    settings: AutoregressiveSettings,
    context: int,
    writer: NegativeSetWriter,
    shards: dict[int, Shard],
) -> None:
    import ray

    _start_ray()
    cluster = ray.cluster_resources()
    resources = Resources.plan(config, cpus=cluster.get("CPU", 1.0), gpus=int(cluster.get("GPU", 0)))
    log.info("Ray: %s", resources)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)

    from negatives_gen.stages import SampleStage, ScoreStage

    rows = [{"shard": index, "error": "", "payload": pickle.dumps(shard)} for index, shard in shards.items()]
    results = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(
            SampleStage,  # type: ignore[arg-type]  # Ray types a callable class as if it were a function
            fn_constructor_args=(model, settings),
            fn_constructor_kwargs={
                "context": context,
                "seed": config.seed,
                "options": {**resources.engine_options, **config.engine},
            },
            compute=ray.data.ActorPoolStrategy(size=resources.engines),
            num_gpus=resources.engine_gpus,
            num_cpus=resources.cpus,
        )
        .map(
            ScoreStage,  # type: ignore[arg-type]  # as above
            fn_constructor_args=(model, embedder, writer),
            fn_constructor_kwargs={"dtype": SCORER_DTYPE},
            compute=ray.data.ActorPoolStrategy(size=resources.scorers),
            num_gpus=resources.scorer_gpus,
            num_cpus=resources.cpus,
        )
    )
    started = time.perf_counter()
    groups = tokens = 0
    # A batch is a block is a shard; without prefetching each is told as soon as it is written.
    batches: Any = results.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
    for done, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
        if row["error"]:
            raise UserError(row["error"])
        groups, tokens = groups + row["rows"], tokens + row["tokens"]
        rate = tokens / (time.perf_counter() - started)
        print(
            f"  shard {done}/{len(shards)} written: {groups} groups, {tokens} negative tokens, {rate:.0f} tokens/s "
            "(start of the engine counted in)",
            flush=True,
        )


@dataclass(frozen=True)
class Resources:
    """What the actors of a job get: whole GPUs for the engines and the rest for the scorers, else a share of each GPU.

    Attributes:
        engines, scorers: number of actors.
        engine_gpus, scorer_gpus, cpus: what one actor gets.
    """

    engines: int
    engine_gpus: float
    scorers: int
    scorer_gpus: float
    cpus: float

    @property
    def engine_options(self) -> dict[str, Any]:
        """An engine that shares its GPU with a scorer must leave it room."""
        return {"gpu_memory_utilization": 0.6} if 0 < self.engine_gpus < 1 else {}

    @classmethod
    def plan(cls, config: GenerateConfig, *, cpus: float, gpus: int) -> "Resources":
        """Share out a cluster. Raises UserError if the engines need more GPUs than it has."""

        def share(actors: int) -> float:
            """Cores per actor: whole ones where there are enough, else a part of one, so that all can be placed."""
            return float(cpus // actors) if cpus > actors else 0.9 * cpus / actors

        if not gpus:
            engines = config.num_engines or 1
            return cls(engines, 0, engines, 0, share(2 * engines))
        per_engine = int(config.engine.get("tensor_parallel_size", 1))
        engines = config.num_engines or max(1, gpus // per_engine)
        if engines * per_engine > gpus:
            raise UserError(
                f"{engines} engines of {per_engine} GPUs need {engines * per_engine} GPUs, the cluster has {gpus}. "
                "Lower --num_engines or --engine.tensor_parallel_size."
            )
        free = gpus - engines * per_engine
        if free:
            return cls(engines, per_engine, free, 1, share(engines + free))
        if per_engine == 1:
            return cls(engines, 0.7, engines, 0.3, share(2 * engines))
        return cls(engines, per_engine, engines, 0, share(2 * engines))

    def __str__(self) -> str:
        return (
            f"{self.engines} engine(s) with {self.engine_gpus:g} GPU, {self.scorers} scorer(s) with "
            f"{self.scorer_gpus:g} GPU"
        )


def _start_ray() -> None:
    """Join the cluster of the job or of $RAY_ADDRESS, else start Ray in this process."""
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:  # the cluster and `ray job submit` decide the workers' environment
        ray.init(address=address, logging_level=logging.WARNING)
        return
    # Ray starts its workers at niceness 15; on a machine that does anything else they would hardly run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray keeps a worker's import path and environment apart from the driver's unless told.
    passed = {k: v for k, v in os.environ.items() if k.startswith(("VLLM_", "HF_", "TORCH_COMPILE", "OMP_NUM"))}
    import_path = os.pathsep.join(p for p in sys.path if p) or "."
    ray.init(
        address="local",
        runtime_env={"env_vars": {**passed, "PYTHONPATH": import_path}},
        include_dashboard=False,
        logging_level=logging.WARNING,
    )


def _local(name: str) -> str:
    """A path as an absolute one; a hub id or an embedded data set as it is."""
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(tuple(READERS))
    if looks_like_path or os.path.exists(name):
        return resolve_path(name)
    resolved = resolve_path(name) if "/" in name and in_ray_job() else name
    return resolved if os.path.exists(resolved) else name
