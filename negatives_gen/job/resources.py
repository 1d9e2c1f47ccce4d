"""What the actors of a job ask Ray for, so that each of them can be placed on a node of the cluster."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.command.errors import UserError
from data.command.wording import counted
from negatives_gen.strategies.base import ASK, SAMPLE, SCORE

log = logging.getLogger(__name__)

GIB = 2**30
# Cores of an actor that only waits for an API.
ASK_CPUS = 0.05
# Of a GPU that an engine and a scorer share.
ENGINE_PART, SCORER_PART = 0.7, 0.3


@dataclass(frozen=True)
class Node:
    """What a node of the cluster offers to Ray: cores, whole GPUs, and memory in bytes."""

    cpus: float
    gpus: int = 0
    memory: float = 0.0


@dataclass(frozen=True)
class Share:
    """What a stage gets of the cluster.

    Attributes:
        actors: how many it has.
        cpus, gpus, memory: what each of them asks for; memory in bytes, 0 where a node offers none.
    """

    actors: int
    cpus: float
    gpus: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class Resources:
    """What the actors of a job get: whole GPUs for the engines and the rest for the scorers, else a part of each GPU.

    Attributes:
        shares: stage -> what it gets, of the stages that there are.
        workers_gpus: GPUs that vLLM's own workers of each engine hold beside its actor.
    """

    shares: dict[str, Share]
    workers_gpus: int = 0

    @property
    def engine_options(self) -> dict[str, Any]:
        """An engine that shares its GPU with a scorer must leave it room."""
        shared = SAMPLE in self.shares and 0 < self.shares[SAMPLE].gpus < 1
        return {"gpu_memory_utilization": 0.6} if shared else {}

    @classmethod
    def plan(
        cls,
        stages: Collection[str],
        nodes: Sequence[Node],
        *,
        num_engines: int | None,
        engine: Mapping[str, Any],
        memory: Mapping[str, int],
    ) -> "Resources":
        """Share out a cluster.

        Args:
            stages: those that there are.
            nodes: an actor lies on one of them.
            num_engines, engine: what the user asked for, see `negatives_gen.config`.
            memory: stage -> bytes that one of its actors takes (`negatives_gen.job.memory`); where a node offers less,
                less is asked for, and a warning says so.

        Raises:
            UserError: the engines, or a scorer beside them, need more GPUs than there are, or than a node has.
        """
        gpus = sum(node.gpus for node in nodes)
        if gpus:
            engines, engine_gpus, scorers, scorer_gpus = _on_gpus(nodes, SAMPLE in stages, num_engines, engine)
        else:
            # Two scorers of one thread beat one of two, and scoring takes longer than sampling does.
            engines, engine_gpus, scorer_gpus = (num_engines or 1) if SAMPLE in stages else 0, 0.0, 0.0
            scorers = 2 * (engines or 1)
        asking = ASK_CPUS if ASK in stages else 0.0
        free = [replace(node, cpus=node.cpus - asking) for node in nodes]
        cpus = _cores_beside_gpus(free, engines, scorers, engine_gpus) if gpus else _cores(free, engines + scorers)
        shares = {
            SAMPLE: Share(engines, cpus, engine_gpus),
            ASK: Share(1, ASK_CPUS),
            SCORE: Share(scorers, cpus, scorer_gpus),
        }
        found = _with_memory({stage: shares[stage] for stage in shares if stage in stages}, nodes, memory)
        return cls(found, _engine_size(engine) if gpus and SAMPLE in stages and not engine_gpus else 0)

    @property
    def gpu_stages(self) -> list[str]:
        """The stages whose actors hold GPUs, in their order."""
        return [stage for stage, share in self.shares.items() if share.gpus or self._workers_gpus(stage)]

    def holds_its_gpus(self, stage: str) -> bool:
        """Whether a stage's actors hold their GPUs themselves, so that they come up once they have them."""
        return not self._workers_gpus(stage)

    def gpus(self, actors: int) -> float:
        """GPUs that the job holds with at most so many actors of each stage."""
        return round(sum(min(one.actors, actors) * self._of_one(stage) for stage, one in self.shares.items()), 3)

    def lack_of_gpus(self, free: float, total: float, shards: int) -> str:
        """What is to be said where others hold GPUs that the job asks for; "" where all are free.

        Args:
            free, total: GPUs of the cluster.
            shards: that are to be made; of no stage are there more actors.
        """
        asked = self.gpus(shards)
        if free >= asked:
            return ""
        return (
            f"{free:g} of {total:g} GPUs are free now, {asked:g} are asked for: the rest comes in as others' jobs end. "
            f"To begin, {self.to_begin(self.gpu_stages)}"
        )

    def to_begin(self, stages: Sequence[str]) -> str:
        """What the first actor of each of these stages needs, in words."""
        return ", ".join(f"stage '{stage}' needs {counted(self._of_one(stage), 'GPU')}" for stage in stages)

    def _of_one(self, stage: str) -> float:
        """GPUs of one actor and of vLLM's own workers beside it."""
        return self.shares[stage].gpus + self._workers_gpus(stage)

    def _workers_gpus(self, stage: str) -> int:
        return self.workers_gpus if stage == SAMPLE else 0

    def __str__(self) -> str:
        return ", ".join(
            f"stage '{stage}': {counted(share.actors, 'actor')} with {share.cpus:g} CPU, {share.gpus:g} GPU, "
            f"{share.memory / GIB:.1f} GiB"
            for stage, share in self.shares.items()
        )


def _on_gpus(
    nodes: Sequence[Node], samples: bool, num_engines: int | None, engine: Mapping[str, Any]
) -> tuple[int, float, int, float]:
    """Number of engines, GPUs that the actor of one holds, number of scorers, GPUs of one. Raises UserError."""
    gpus = sum(node.gpus for node in nodes)
    if not samples:
        return 0, 0.0, gpus, 1.0
    per_engine = _engine_size(engine)
    # vLLM's own workers of Ray hold the GPUs then, in a placement group of one GPU each, on whatever nodes.
    spread = engine.get("distributed_executor_backend") == "ray"
    most = gpus // per_engine if spread else sum(node.gpus // per_engine for node in nodes)
    parallel = f"tensor_parallel_size x pipeline_parallel_size = {per_engine}"
    if not most and not spread and per_engine <= gpus:
        raise UserError(
            f"an engine needs {per_engine} GPUs on one node ({parallel}), the cluster's nodes have at most "
            f"{max(node.gpus for node in nodes)}. Lower --engine.tensor_parallel_size, or let vLLM use several nodes: "
            "--engine.distributed_executor_backend ray."
        )
    engines = num_engines or max(1, most)
    if engines > most:
        fit = "" if engines * per_engine > gpus else f", whose nodes hold {most} of these engines"
        raise UserError(
            f"{counted(engines, 'engine')} of {per_engine} GPUs {'needs' if engines == 1 else 'need'} "
            f"{engines * per_engine} GPUs, the cluster has {gpus}{fit}. Lower --num_engines, "
            "--engine.tensor_parallel_size or --engine.pipeline_parallel_size."
        )
    if engines * per_engine == gpus and per_engine == 1 and not spread:
        return engines, ENGINE_PART, engines, SCORER_PART
    if engines * per_engine == gpus and not num_engines:
        engines -= 1  # for the scorers: one on a CPU would hold up all engines
    if not engines or engines * per_engine == gpus:
        raise UserError(
            f"no GPU is left for a scorer: {counted(max(1, engines), 'engine')} of {per_engine} GPUs ({parallel}), the "
            f"cluster has {gpus}. Lower --num_engines or --engine.tensor_parallel_size, or add a GPU."
        )
    return engines, 0.0 if spread else float(per_engine), gpus - engines * per_engine, 1.0


def _engine_size(engine: Mapping[str, Any]) -> int:
    """GPUs of an engine."""
    return _size(engine, "tensor_parallel_size") * _size(engine, "pipeline_parallel_size")


def _size(engine: Mapping[str, Any], option: str) -> int:
    size = engine.get(option, 1)
    if type(size) is not int or size < 1:
        raise UserError(f"--engine.{option} must be a whole number, at least 1, got {size!r}.")
    return size


def _cores(nodes: Sequence[Node], actors: int) -> float:
    """Cores per actor: whole ones where there are enough, else a part of one, so that all can be placed."""
    cores = max(1.0, float(sum(node.cpus for node in nodes) // actors))
    while sum(int(node.cpus / cores) for node in nodes) < actors and cores > 0.01:
        cores = cores - 1 if cores > 1 else round(0.9 * cores, 3)
    return cores


def _cores_beside_gpus(nodes: Sequence[Node], engines: int, scorers: int, engine_gpus: float) -> float:
    """Cores per actor, so few that on no node they run out before the GPUs, whichever actors Ray places there."""
    everywhere = engines if engine_gpus == 0 else 0
    per_gpu = 2 if 0 < engine_gpus < 1 else 1
    return min(_cores([node], min(engines + scorers, everywhere + per_gpu * node.gpus)) for node in nodes if node.gpus)


def _with_memory(shares: dict[str, Share], nodes: Sequence[Node], memory: Mapping[str, int]) -> dict[str, Share]:
    """The shares with the memory that they ask for: what they take, or the same part of it for all that fits.

    Raises:
        UserError: the actors fit on no nodes, whatever their memory.
    """
    for percent in range(100, -1, -5):
        asking = {stage: replace(share, memory=memory[stage] * percent // 100) for stage, share in shares.items()}
        if _fit(asking.values(), nodes):
            break
    else:
        actors, cpus = sum(share.actors for share in shares.values()), sum(node.cpus for node in nodes)
        where = counted(len(nodes), "node")
        raise UserError(f"{counted(actors, 'actor')} cannot be placed: the cluster has {cpus:g} CPU on {where}.")
    if percent < 100:
        taken = sum(share.actors * memory[stage] for stage, share in shares.items())
        log.warning(
            "the actors take about %.1f GiB of memory, the nodes offer %.1f GiB to Ray: %d%% of it is asked for",
            taken / GIB, sum(node.memory for node in nodes) / GIB, percent,
        )  # fmt: skip
    return asking


def _fit(shares: Collection[Share], nodes: Sequence[Node]) -> bool:
    """Whether all actors can be placed, stage by stage as Ray does it, each on the first node that has room."""
    left = [_Left(node.cpus, [1.0] * node.gpus, node.memory) for node in nodes]
    return all(any(node.take(share) for node in left) for share in shares for _ in range(share.actors))


@dataclass
class _Left:
    """What a node has left, GPU by GPU: a part of one is a part of this one, and whole ones are whole."""

    cpus: float
    gpus: list[float]
    memory: float

    def take(self, share: Share) -> bool:
        """Place an actor here. Whether there was room for it."""
        parts, least = max(1, int(share.gpus)) if share.gpus else 0, min(1.0, share.gpus)
        chosen = [place for place, has in enumerate(self.gpus) if has >= least - 1e-6][:parts]
        if len(chosen) < parts or self.cpus < share.cpus - 1e-6 or self.memory < share.memory:
            return False
        self.cpus, self.memory = self.cpus - share.cpus, self.memory - share.memory
        for place in chosen:
            self.gpus[place] -= least
        return True
