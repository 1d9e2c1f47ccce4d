"""The pipeline: which stages there are, and how Ray is started, without Ray."""

from types import SimpleNamespace
from typing import Any

import pytest

from data.command.errors import UserError
from negatives_gen.job import cluster
from negatives_gen.job.actors import Work
from negatives_gen.job.cluster import start_ray
from negatives_gen.job.pipeline import shards_in_flight


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


@pytest.mark.parametrize(
    ("strategies", "present", "options", "shards"),
    [
        ({"an": 11}, {}, {}, 2 + 1),  # 512 x 11 fill 256 slots many times
        ({"an": 1}, {}, {}, 2 + 2),
        ({"an": 1}, {}, {"max_num_seqs": 64}, 2 + 1),
        ({"an": 12, "bn": 3}, {"an": 11}, {}, 2 + 2),  # one is lacking of each group
        ({"an": 1, "rn": 4}, {}, {}, 2 + 1),  # one strategy after the other
    ],
)
def test_shards_in_flight_are_enough_for_the_slots(
    strategies: dict[str, int], present: dict[str, int], options: dict[str, int], shards: int
) -> None:
    work: Any = SimpleNamespace(
        strategies={name: {"count": count} for name, count in strategies.items()},
        present=present,
        engine_options=options,
        writer=SimpleNamespace(job={"groups_per_shard": 512}),
    )
    assert shards_in_flight(work, 256) == shards
