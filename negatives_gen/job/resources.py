"""What the actors of a job ask Ray for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.command.errors import UserError


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
