"""Where Ray places engines and scorers: the pipeline's own requests on nodes with GPUs that are only said to be there.

Ray, its nodes and Ray Data are the real ones; the actors are stubs. One cluster, whose nodes come and go.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from data.command.errors import UserError
from negatives_gen.job import pipeline
from negatives_gen.job.resources import GIB, Resources
from negatives_gen.strategies.base import SAMPLE, SCORE
from tests.support.placed import PlacedWork, StubEngine, StubScorer, places

pytestmark = [pytest.mark.ray, pytest.mark.seconds]

CPUS = 8
TP2: dict[str, Any] = {"tensor_parallel_size": 2}
TP4: dict[str, Any] = {"tensor_parallel_size": 4}
MEMORY = {SAMPLE: GIB, SCORE: GIB}


class GpuCluster:
    """A cluster of Ray in this process: a head without cores, and nodes with GPUs that nothing computes with."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self.ray = ray
        # No worker is started before it is asked for.
        config = {"prestart_worker_first_driver": False, "enable_worker_prestart": False}
        head = {"num_cpus": 0, "_system_config": config, "include_dashboard": False, "include_log_monitor": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=self.cluster.address, logging_level=logging.WARNING, log_to_driver=False)
        self.nodes: list[Any] = []

    def has(self, *gpus: int) -> None:
        """Let the cluster have a node with so many GPUs each, and no others."""
        present = [int(node._ray_params.num_gpus) for node in self.nodes]
        if tuple(present) != gpus[: len(present)]:
            for node in self.nodes:
                self.cluster.remove_node(node)
            self.nodes, present = [], []
        for number in gpus[len(present) :]:
            self.nodes.append(self.cluster.add_node(num_cpus=CPUS, num_gpus=number, memory=64 * GIB))
        self.wait_for(sum(gpus))

    def wait_for(self, gpus: int) -> None:
        """Until all are free: actors of the job before may be ending."""
        end = time.monotonic() + 60
        while self.ray.available_resources().get("GPU", 0) != gpus or sum(n.gpus for n in pipeline._nodes()) != gpus:
            assert time.monotonic() < end, self.ray.available_resources()
            time.sleep(0.1)

    def end(self) -> None:
        self.ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def gpus() -> Iterator[GpuCluster]:
    with mock.patch.dict(os.environ, {"RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "RAY_worker_niceness": "0"}):
        started = GpuCluster()
        yield started
        started.end()


@dataclass(frozen=True)
class Placed:
    """Where the actors of a job were, all at the same time."""

    engines: list[dict[str, Any]]
    scorers: list[dict[str, Any]]

    def on(self, stage: str) -> list[int]:
        """How many actors of a stage each of its nodes has, the most first."""
        return sorted(Counter(one["node"] for one in getattr(self, stage)).values(), reverse=True)

    @property
    def held(self) -> Counter[tuple[str, int]]:
        """How many actors each GPU of a node has."""
        return Counter((one["node"], gpu) for one in [*self.engines, *self.scorers] for gpu in one["gpus"])


@pytest.fixture
def place(gpus: GpuCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Placed]:
    """Has a job's actors placed on a cluster of some nodes, as `run_pipeline` does it."""
    monkeypatch.setattr(pipeline, "STAGES", {SAMPLE: StubEngine, SCORE: StubScorer})

    def placed(
        nodes: Sequence[int],
        engine: dict[str, Any],
        num_engines: int | None = None,
        bundles: Any = (),
        shards: int = 16,
    ) -> Placed:
        gpus.has(*nodes)
        resources = Resources.plan(
            [SAMPLE, SCORE], pipeline._nodes(), num_engines=num_engines, engine=engine, memory=MEMORY
        )
        actors = sum(min(shards, share.actors) for share in resources.shares.values())
        work: Any = PlacedWork(tmp_path, actors, engine, list(bundles))
        rows = list(pipeline._results(work, range(shards), resources, in_flight=3))
        gpus.wait_for(sum(nodes))
        assert [row["error"] for row in rows] == [""] * shards
        found = places(tmp_path)
        return Placed(*([one for one in found if one["stage"] == stage] for stage in (SAMPLE, SCORE)))

    return placed


def test_1x1_engine_and_scorer_share_the_gpu(place: Callable[..., Placed]) -> None:
    found = place([1], {})
    (engine,), (scorer,) = found.engines, found.scorers
    assert engine["gpus"] == scorer["gpus"] == [0]
    assert engine["visible"] == scorer["visible"] == "0"
    assert engine["options"] == {"gpu_memory_utilization": 0.6}
    assert scorer["options"] == {}


def test_4x1_each_node_has_an_engine_and_a_scorer_on_its_gpu(place: Callable[..., Placed]) -> None:
    found = place([1, 1, 1, 1], {})
    assert found.on("engines") == found.on("scorers") == [1, 1, 1, 1]
    assert set(found.held.values()) == {2}


def test_4x1_vllms_workers_of_ray_hold_gpus_of_several_nodes(place: Callable[..., Placed]) -> None:
    engine = {**TP2, "distributed_executor_backend": "ray"}
    found = place([1, 1, 1, 1], engine, 1, bundles=[{"GPU": 1.0}] * 2)
    (alone,) = found.engines
    assert alone["gpus"] == []
    assert len(found.scorers) == 2
    assert len({*alone["workers"], *(scorer["node"] for scorer in found.scorers)}) == 4


def test_4x1_an_engine_of_two_gpus_is_refused(place: Callable[..., Placed]) -> None:
    with pytest.raises(UserError, match=r"an engine needs 2 GPUs on one node .*, the cluster's nodes have at most 1\."):
        place([1, 1, 1, 1], TP2)


def test_1x8_engines_of_two_gpus_leave_two_for_scorers(place: Callable[..., Placed]) -> None:
    found = place([8], TP2)
    assert [len(engine["gpus"]) for engine in found.engines] == [2, 2, 2]
    assert [len(scorer["gpus"]) for scorer in found.scorers] == [1, 1]
    assert [engine["visible"] for engine in found.engines] == [",".join(map(str, e["gpus"])) for e in found.engines]
    assert sorted(gpu for _, gpu in found.held) == list(range(8))
    assert set(found.held.values()) == {1}


def test_1x8_engines_that_take_all_are_refused(place: Callable[..., Placed]) -> None:
    with pytest.raises(UserError, match="no GPU is left for a scorer: 2 engines of 4 GPUs"):
        place([8], TP4, 2)
    with pytest.raises(UserError, match=r"3 engines of 4 GPUs need 12 GPUs, the cluster has 8\."):
        place([8], TP4, 3)


def test_2x8_engines_of_four_gpus_lie_on_one_node_each_and_scorers_have_the_rest(place: Callable[..., Placed]) -> None:
    found = place([8, 8], TP4)
    assert [len(engine["gpus"]) for engine in found.engines] == [4, 4, 4]
    assert found.on("engines") == [2, 1]
    assert [len(scorer["gpus"]) for scorer in found.scorers] == [1] * 4
    assert found.on("scorers") == [4]  # on the node of the engine that is alone
    assert len(found.held) == 16
    assert set(found.held.values()) == {1}


def test_2x8_the_pipelines_of_an_engine_are_on_its_node_too(place: Callable[..., Placed]) -> None:
    found = place([8, 8], {**TP4, "pipeline_parallel_size": 2}, shards=2)
    (engine,) = found.engines
    assert sorted(engine["gpus"]) == list(range(8))
    assert found.on("scorers") == [2]
    assert engine["node"] not in {scorer["node"] for scorer in found.scorers}


@pytest.mark.slow
def test_2x8_engines_are_spread(place: Callable[..., Placed]) -> None:
    found = place([8, 8], TP4, 2)
    assert found.on("engines") == [1, 1]
    assert found.on("scorers") == [4, 4]
