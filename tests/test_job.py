"""Stage 1's planning without Ray: who gets what of a cluster, and which examples make up which shard."""

import pytest

from data.errors import UserError
from data.schema import Group, Reject
from negatives_gen.config import GenerateConfig
from negatives_gen.job import Resources, cut


def config(**options: object) -> GenerateConfig:
    return GenerateConfig(**{"model": "m", "dataset": "facts", "out": "o", **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "cpus", "gpus", "expected"),
    [
        ({}, 2.0, 0, Resources(1, 0, 1, 0, 0.9)),
        ({}, 32.0, 0, Resources(1, 0, 1, 0, 16.0)),
        ({"num_engines": 8}, 4.0, 0, Resources(8, 0, 8, 0, 0.225)),
        ({}, 16.0, 1, Resources(1, 0.7, 1, 0.3, 8.0)),
        ({"num_engines": 6}, 64.0, 8, Resources(6, 1, 2, 1, 8.0)),
        ({"engine": {"tensor_parallel_size": 2}, "num_engines": 3}, 64.0, 8, Resources(3, 2, 2, 1, 12.0)),
    ],
)
def test_every_actor_can_be_placed(options: dict, cpus: float, gpus: int, expected: Resources) -> None:
    found = Resources.plan(config(**options), cpus=cpus, gpus=gpus)
    assert found == expected
    assert found.cpus * (found.engines + found.scorers) <= cpus
    assert found.engine_gpus * found.engines + found.scorer_gpus * found.scorers <= gpus


def test_an_engine_that_shares_its_gpu_leaves_room_for_the_scorer() -> None:
    assert Resources.plan(config(), cpus=8, gpus=1).engine_options == {"gpu_memory_utilization": 0.6}
    assert Resources.plan(config(num_engines=1), cpus=8, gpus=2).engine_options == {}


def test_more_engines_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match="need 8 GPUs, the cluster has 4"):
        Resources.plan(config(num_engines=4, engine={"tensor_parallel_size": 2}), cpus=8, gpus=4)


def test_a_shard_holds_consecutive_examples_of_the_source_whether_usable_or_not() -> None:
    groups = [Group(name, "p", "r", [1], [2]) for name in "abd"]
    rejects = [Reject("c", "empty response", "", "p"), Reject("a", "duplicate", "", "p")]
    shards = cut(["a", "b", "c", "a", "d"], groups, rejects, 2)
    assert [([g.id for g in used], [r.id for r in refused]) for used, refused in shards] == [
        (["a", "b"], []),
        ([], ["c", "a"]),
        (["d"], []),
    ]
