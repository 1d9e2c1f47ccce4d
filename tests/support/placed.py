"""Stages that load nothing: each actor says where Ray has placed it, and waits until all others are placed too."""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Long for a worker to come up; one that has no room is pending for ever.
PATIENCE = 90.0

# The process of vLLM's engine, as far as Ray sees it; it ends when its actor does.
ENGINE_CORE = """
import json, sys
import ray
from ray.util import placement_group, placement_group_table
ray.init(log_to_driver=False, logging_level="error")
group = placement_group(json.loads(sys.argv[1]), strategy="PACK")
ray.get(group.ready(), timeout=float(sys.argv[2]))
print(json.dumps(list(placement_group_table(group)["bundles_to_node_id"].values())), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class PlacedWork:
    """What of `negatives_gen.job.actors.Work` the pipeline asks for.

    Attributes:
        folder: where each actor says where it is.
        actors: how many there are.
        bundles: of an engine's placement group, as vLLM's executor for Ray asks for it; none with other executors.
    """

    folder: Path
    actors: int
    engine_options: dict[str, Any]
    bundles: list[dict[str, float]] = field(default_factory=list)
    writer: Any = field(default_factory=lambda: SimpleNamespace(job={"groups_per_shard": 8}))


class StubStage:
    """An actor with the requests of a stage."""

    name: str

    def __init__(self, work: PlacedWork):
        import ray

        self.work = work
        self.said: dict[str, Any] = {
            "stage": self.name,
            "node": ray.get_runtime_context().get_node_id(),
            "gpus": [int(number) for number in ray.get_gpu_ids()],
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "options": work.engine_options,
            "workers": self.workers_nodes(),
        }
        part = work.folder / f"{uuid.uuid4().hex}.part"
        part.write_text(json.dumps(self.said))
        part.rename(part.with_suffix(".json"))

    def workers_nodes(self) -> list[str]:
        """The nodes on which vLLM's own workers of Ray hold GPUs."""
        return []

    async def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while len(placed := places(self.work.folder)) < self.work.actors:
            if time.monotonic() > end:
                return {**row, "error": f"{len(placed)} of {self.work.actors} actors were placed"}
            await asyncio.sleep(0.1)
        return row


class StubEngine(StubStage):
    """In the place of an engine's actor."""

    name = "sample"

    def workers_nodes(self) -> list[str]:
        if not self.work.bundles:
            return []
        import ray

        # vLLM's own: the process of its engine is spawned in a Ray actor, and is a driver of a job of its own. What
        # that holds comes free with it; a group that the actor itself made would be held until our job's end.
        self.core = subprocess.Popen(
            [sys.executable, "-c", ENGINE_CORE, json.dumps(self.work.bundles), str(PATIENCE)],
            env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.core.stdout
        return json.loads(self.core.stdout.readline())


class StubScorer(StubStage):
    """In the place of a scorer's actor."""

    name = "score"


def places(folder: Path) -> list[dict[str, Any]]:
    """What the actors have said so far."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
