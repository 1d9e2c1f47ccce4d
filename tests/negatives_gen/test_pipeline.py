"""The pipeline: which stages there are, and how Ray is started, without Ray."""

from typing import Any

import pytest

from data.command.errors import UserError
from negatives_gen.job import cluster
from negatives_gen.job.actors import Work
from negatives_gen.job.cluster import start_ray


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
