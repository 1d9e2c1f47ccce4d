"""What we tell Ray, against the installed Ray's own signatures and checks. No cluster is started."""

import inspect
from typing import Any, get_type_hints
from unittest import mock

import pytest

from negatives_gen.job import cluster
from negatives_gen.job.pipeline import actor_options
from negatives_gen.job.resources import GIB, Node, Resources
from negatives_gen.strategies.base import ASK, SAMPLE, SCORE

RAY_TP2: dict[str, Any] = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
CLUSTERS: dict[str, tuple[list[Node], dict[str, Any]]] = {
    "two cores": ([Node(2, memory=8 * GIB)], {}),
    "1x1": ([Node(8, 1, 64 * GIB)], {}),
    "1x8": ([Node(64, 8)], {"tensor_parallel_size": 2}),
    "2x8": ([Node(64, 8, 512 * GIB)] * 2, {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}),
    "4x1": ([Node(8, 1, 64 * GIB)] * 4, {}),
    "4x1, vLLM's workers of Ray": ([Node(8, 1, 64 * GIB)] * 4, RAY_TP2),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_an_actor_asks_for_passes_rays_checks(name: str) -> None:
    import ray.data
    from ray._common.ray_option_utils import validate_actor_options

    nodes, engine = CLUSTERS[name]
    memory = {SAMPLE: 4 * GIB, ASK: GIB, SCORE: 2 * GIB}
    resources = Resources.plan([SAMPLE, ASK, SCORE], nodes, num_engines=None, engine=engine, memory=memory)
    for stage, share in resources.shares.items():
        options = actor_options(share, 100, 3 if stage == SAMPLE else None)
        bound = inspect.signature(ray.data.Dataset.map).bind(None, object, **options)
        assert "ray_remote_args" not in bound.arguments  # each is one that Ray Data has a name for
        assert options.keys() == {"compute", "num_cpus", "num_gpus", "memory"}
        validate_actor_options({key: value for key, value in options.items() if key != "compute"}, in_options=False)
        assert isinstance(options["compute"], get_type_hints(ray.data.Dataset.map)["compute"])
        pool: Any = options["compute"]
        assert (pool.min_size, pool.max_size) == (share.actors, share.actors)
        assert pool.max_tasks_in_flight_per_actor == pool.max_concurrent_calls_per_actor


def test_rays_checks_would_find_a_wrong_option() -> None:
    from ray._common.ray_option_utils import validate_actor_options

    for wrong in ({"num_gpu": 1}, {"num_gpus": "one"}, {"num_gpus": -1.0}, {"memory": "4 GiB"}):
        with pytest.raises((ValueError, TypeError)):
            validate_actor_options(wrong, in_options=False)


def test_of_few_shards_there_are_few_actors() -> None:
    shares = Resources.plan([SCORE], [Node(64, 8)], num_engines=None, engine={}, memory={SCORE: 0}).shares
    pool: Any = actor_options(shares[SCORE], 3, None)["compute"]
    assert pool.max_size == 3


@pytest.mark.parametrize("address", ["", "ray.example:6379"])
def test_ray_is_started_and_joined_with_names_that_it_knows(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setattr(cluster, "require_answer", lambda _: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    # Names after ** are checked by Ray itself, which this replaces.
    known = {name for name, one in inspect.signature(ray.init).parameters.items() if one.kind is not one.VAR_KEYWORD}
    with mock.patch.object(ray, "init", autospec=True) as init:
        cluster.start_ray()
    assert init.call_args.kwargs.keys() <= known
    assert init.call_args.kwargs["address"] == (address or "local")
