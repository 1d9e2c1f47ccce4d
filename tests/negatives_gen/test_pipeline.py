"""The pipeline: who gets what of a cluster, and which stages there are, without Ray."""

from typing import Any

import pytest

from data.command.errors import UserError
from negatives_gen.job import cluster
from negatives_gen.job.actors import Work
from negatives_gen.job.cluster import start_ray
from negatives_gen.job.resources import Resources


def planned(*, cpus: list[float], gpus: int, **options: Any) -> Resources:
    return Resources.plan(**{"samples": True, "num_engines": None, "engine": {}, **options}, node_cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("options", "cpus", "gpus", "expected"),
    [
        ({}, [2.0], 0, Resources(1, 0, 2, 0, 0.656)),
        ({}, [32.0], 0, Resources(1, 0, 2, 0, 10)),
        ({}, [16.0], 1, Resources(1, 0.7, 1, 0.3, 8)),
        ({"samples": False}, [2.0], 0, Resources(0, 0, 2, 0, 1)),
        ({"samples": False}, [16.0], 4, Resources(0, 0, 4, 1, 4)),
        ({"num_engines": 6}, [64.0], 8, Resources(6, 1, 2, 1, 8)),
        ({"engine": {"tensor_parallel_size": 2}, "num_engines": 3}, [64.0], 8, Resources(3, 2, 2, 1, 12)),
        # An actor lies on one node: two nodes of 5 cores have room for three actors of 2, not of 3.
        ({}, [5.0, 5.0], 0, Resources(1, 0, 2, 0, 2)),
        ({"num_engines": 2}, [0.0, 4.0, 4.0], 0, Resources(2, 0, 4, 0, 1)),
    ],
)
def test_every_actor_can_be_placed(options: dict, cpus: list[float], gpus: int, expected: Resources) -> None:
    found = planned(**options, cpus=cpus, gpus=gpus)
    assert found == expected
    assert found.engines + found.scorers <= sum(int(node / found.cpus) for node in cpus)
    assert found.engine_gpus * found.engines + found.scorer_gpus * found.scorers <= gpus


def test_an_engine_that_shares_its_gpu_leaves_room_for_the_scorer() -> None:
    assert planned(cpus=[8], gpus=1).engine_options == {"gpu_memory_utilization": 0.6}
    assert planned(num_engines=1, cpus=[8], gpus=2).engine_options == {}


def test_more_engines_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match="need 8 GPUs, the cluster has 4"):
        planned(num_engines=4, engine={"tensor_parallel_size": 2}, cpus=[8], gpus=4)


@pytest.mark.parametrize(
    ("strategies", "stages"),
    [
        ({"an": {}}, ["sample", "score"]),
        ({"bn": {}, "mn": {}, "tn": {}}, ["score"]),  # no engine is started
        ({"bn": {}, "un": {}}, ["ask", "score"]),
        ({"an": {}, "un": {}}, ["sample", "ask", "score"]),
        ({}, ["score"]),  # a set that is extended by ranking signals alone
    ],
)
def test_only_the_stages_that_there_is_work_for_are_started(strategies: dict, stages: list[str]) -> None:
    nothing: Any = None
    rest: dict[str, Any] = {"context": 1, "seed": 0, "dtype": "float32", "engine_options": {}}
    work = Work("m", nothing, strategies, {}, nothing, **rest)
    assert work.stages == stages


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            None,
            "Ray did not start on this machine: The node timed out. It may be too busy: run the same command again.",
        ),
        ("10.0.0.1:6379", "Ray cluster '10.0.0.1:6379' cannot be joined: The node timed out. Check $RAY_ADDRESS."),
    ],
)
def test_a_ray_that_does_not_come_up_is_one_line(
    address: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def init_stub(**_: Any) -> None:
        raise Exception("The node timed out.\nMore of it.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init_stub)
    monkeypatch.setattr(cluster, "require_answer", lambda address: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as caught:
        start_ray()
    assert str(caught.value) == message
