"""The pipeline: shard numbers through Ray Data's actors, which make, score and write the shards."""

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.command.errors import UserError, first_line
from data.command.privacy import is_secret_variable
from negatives_gen.job.actors import AskStage, SampleStage, ScoreStage, Work
from negatives_gen.strategies.base import ASK, SAMPLE, SCORE

log = logging.getLogger(__name__)

# Cores of an actor that only waits for an API.
ASK_CPUS = 0.05


def run_pipeline(
    work: Work, shards: Sequence[int], *, num_engines: int | None, on_written: Callable[..., None]
) -> None:
    """Make these shards. A row of the Ray data set is a whole shard, so that no block splitting changes its members.

    Args:
        num_engines: what the user asked for.
        on_written: called in this process after each shard: index, rows, rejected, tokens.

    Raises:
        UserError: what an actor had to say; shards written until then stay.
    """
    import ray

    _start_ray()
    cluster = ray.cluster_resources()
    stages = work.stages
    ask_cpus = ASK_CPUS if ASK in stages else 0.0
    resources = Resources.plan(
        samples=SAMPLE in stages,
        num_engines=num_engines,
        engine=work.engine_options,
        node_cpus=[node["Resources"].get("CPU", 0.0) - ask_cpus for node in ray.nodes() if node["Alive"]],
        gpus=int(cluster.get("GPU", 0)),
    )
    log.info("Ray: %s", resources)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)

    sampling = dataclasses.replace(work, engine_options={**resources.engine_options, **work.engine_options})
    actors: dict[str, tuple[type, Work, int, float, float]] = {
        SAMPLE: (SampleStage, sampling, resources.engines, resources.cpus, resources.engine_gpus),
        ASK: (AskStage, work, 1, ASK_CPUS, 0),
        SCORE: (ScoreStage, work, resources.scorers, resources.cpus, resources.scorer_gpus),
    }
    rows = [{"shard": index, "error": "", "payload": b""} for index in shards]
    results = ray.data.from_items(rows, override_num_blocks=len(rows))
    for stage in stages:
        actor, argument, number, cpus, gpus = actors[stage]
        results = results.map(
            actor,  # type: ignore[arg-type]  # Ray types a callable class as if it were a function
            fn_constructor_args=(argument,),
            compute=ray.data.ActorPoolStrategy(size=number),
            num_cpus=cpus,
            num_gpus=gpus,
        )
    # A batch is a block is a shard; without prefetching each is told as soon as it is written.
    batches: Any = results.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
    for row in (row for batch in batches for row in batch.to_pylist()):
        if row["error"]:
            raise UserError(row["error"])
        on_written(row["shard"], row["rows"], row["rejected"], row["tokens"])


@dataclass(frozen=True)
class Resources:
    """What the actors of a job get: whole GPUs for the engines and the rest for the scorers, else a share of each GPU.

    Attributes:
        engines, scorers: number of actors; without sampled negatives there are no engines.
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
    def plan(
        cls, *, samples: bool, num_engines: int | None, engine: dict[str, Any], node_cpus: Sequence[float], gpus: int
    ) -> "Resources":
        """Share out a cluster.

        Args:
            samples: whether engines are needed at all.
            num_engines, engine: what the user asked for, see `negatives_gen.config`.
            node_cpus: cores of each node; an actor lies on one node.

        Raises:
            UserError: the engines need more GPUs than there are.
        """

        def share(actors: int) -> float:
            """Cores per actor: whole ones where there are enough, else a part of one, so that all can be placed."""
            cores = max(1.0, float(sum(node_cpus) // actors))
            while sum(int(cpus / cores) for cpus in node_cpus) < actors and cores > 0.01:
                cores = cores - 1 if cores > 1 else round(0.9 * cores, 3)
            return cores

        if not gpus:
            # Two scorers of one thread beat one of two, and scoring takes longer than sampling does.
            engines = (num_engines or 1) if samples else 0
            scorers = 2 * (engines or 1)
            return cls(engines, 0, scorers, 0, share(engines + scorers))
        if not samples:
            return cls(0, 0, gpus, 1, share(gpus))
        per_engine = int(engine.get("tensor_parallel_size", 1))
        engines = num_engines or max(1, gpus // per_engine)
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
    """Join the cluster of the job or of $RAY_ADDRESS, else start Ray in this process.

    Raises:
        UserError: there is no such cluster, or Ray does not come up.
    """
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:  # the cluster and `ray job submit` decide the workers' environment
            ray.init(address=address, logging_level=logging.WARNING)
        else:
            _start_local_ray()
    except Exception as error:  # Ray raises bare Exceptions here, for one where a start takes over 30 s
        where = f"Ray cluster '{address}' cannot be joined" if address else "Ray did not start on this machine"
        raise UserError(
            f"{where}: {first_line(error).rstrip('.')}. "
            + ("Check $RAY_ADDRESS." if address else "It may be too busy: run the same command again.")
        ) from error


def worker_variables(environ: Mapping[str, str], import_path: Sequence[str]) -> dict[str, str]:
    """What a worker of Ray on this machine is given beside what it inherits.

    Ray keeps its import path, and some of its environment, apart from the driver's unless told. It writes what it is
    told into a log that everyone can read, so keys are left to inheritance.
    """
    prefixes = ("VLLM_", "HF_", "TORCH_COMPILE", "OMP_NUM", "TQDM_")
    passed = {k: v for k, v in environ.items() if k.startswith(prefixes) and not is_secret_variable(k, v)}
    return {**passed, "PYTHONPATH": os.pathsep.join(p for p in import_path if p) or "."}


def _start_local_ray() -> None:
    import ray

    # Ray starts its workers at niceness 15; on a machine that does anything else they would hardly run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address="local",
        runtime_env={"env_vars": worker_variables(os.environ, sys.path)},
        include_dashboard=False,
        logging_level=logging.WARNING,
    )
