"""A job that found GPUs held by others waits for them without a stall, and says so now and then. Ray is a stub."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.command.errors import UserError
from data.set_writer import NegativeSetWriter
from negatives_gen.job import pipeline
from negatives_gen.job.attempts import Stall, attempt, loading_stage
from negatives_gen.job.pipeline import END, _free_gpus, run_pipeline
from negatives_gen.job.resources import Node, Resources
from negatives_gen.job.waiting import SAY_SECONDS, GpuWait
from negatives_gen.strategies.base import ASK, SAMPLE, SCORE
from tests.support.passing_time import ClockStub

HOUR = 3600.0
MEMORY = {SAMPLE: 0, ASK: 0, SCORE: 0}


class ClusterStub(ClockStub):
    """Eight GPUs, of which so many are free, and seconds that pass when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        import ray

        super().__init__(monkeypatch)
        self.free = 2.0
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0, "GPU": self.free} if self.free else {})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> ClusterStub:
    return ClusterStub(monkeypatch)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[NegativeSetWriter]:
    writer = NegativeSetWriter(str(tmp_path / "set"), {}, ["embedding"])
    writer.begin()
    yield writer
    writer.end()


def planned(**engine: Any) -> Resources:
    """One engine of two GPUs and six scorers."""
    options = {"tensor_parallel_size": 2, **engine}
    return Resources.plan([SAMPLE, ASK, SCORE], [Node(32, 8)], num_engines=1, engine=options, memory=MEMORY)


def stall_of(writer: NegativeSetWriter, resources: Resources) -> Stall:
    return Stall(writer.folder, 60, GpuWait(resources, 8, _free_gpus, shards=100))


def test_an_engine_and_then_a_scorer_that_wait_for_gpus_are_no_stall(
    writer: NegativeSetWriter, cluster: ClusterStub
) -> None:
    stall = stall_of(writer, planned())
    for _ in range(3):
        cluster.pass_by(stall, HOUR)
    with loading_stage(writer, ASK):  # it needs no GPU
        cluster.pass_by(stall, HOUR)
    with loading_stage(writer, SAMPLE):
        cluster.pass_by(stall, HOUR)
    with attempt(writer, 0, SAMPLE):
        cluster.pass_by(stall, HOUR)
    for _ in range(3):  # the engine has done what the scorer has room for
        cluster.pass_by(stall, HOUR)
    with loading_stage(writer, SCORE):
        cluster.pass_by(stall, HOUR)
        with pytest.raises(UserError, match=r"nothing has moved .*: a worker that loads its models is in .* 'score'"):
            cluster.pass_by(stall, 60)


def test_an_engine_that_stands_still_is_a_stall_though_the_scorer_waits(
    writer: NegativeSetWriter, cluster: ClusterStub
) -> None:
    stall = stall_of(writer, planned())
    with attempt(writer, 7, SAMPLE):
        cluster.pass_by(stall, HOUR)
        with pytest.raises(UserError, match=r"shard-00007.parquet is in stage 'sample'"):
            cluster.pass_by(stall, 60)


def test_an_engine_whose_gpus_vllms_workers_hold_has_begun_with_its_first_shard(
    writer: NegativeSetWriter, cluster: ClusterStub
) -> None:
    """The actor asks for no GPU, so it loads at once, and waits for its workers while it does."""
    stall = stall_of(writer, planned(distributed_executor_backend="ray"))
    with loading_stage(writer, SCORE):
        cluster.pass_by(stall, HOUR)
    with loading_stage(writer, SAMPLE):
        for _ in range(3):
            cluster.pass_by(stall, HOUR)
    with attempt(writer, 7, SAMPLE):
        cluster.pass_by(stall, HOUR)
        with pytest.raises(UserError, match=r"shard-00007.parquet is in stage 'sample'"):
            cluster.pass_by(stall, 60)


def test_where_all_gpus_are_free_nothing_waits(
    writer: NegativeSetWriter, cluster: ClusterStub, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.free = 8.0
    stall = stall_of(writer, planned())
    cluster.pass_by(stall, HOUR)
    with pytest.raises(UserError, match="no worker has begun a shard"):
        cluster.pass_by(stall, 60)
    assert not caplog.records


def test_what_has_not_begun_is_said_every_few_minutes(
    writer: NegativeSetWriter, cluster: ClusterStub, caplog: pytest.LogCaptureFixture
) -> None:
    stall = Stall(writer.folder, 0, GpuWait(planned(), 8, _free_gpus, shards=100))  # also without a limit

    def said_within(seconds: float) -> list[str]:
        caplog.clear()
        for _ in range(int(seconds // 10)):
            cluster.pass_by(stall, 10)
        return [record.getMessage() for record in caplog.records]

    with caplog.at_level(logging.WARNING):
        assert [record.getMessage() for record in caplog.records] == [
            "2 of 8 GPUs are free now, 8 are asked for: the rest comes in as others' jobs end. To begin, stage "
            "'sample' needs 2 GPUs, stage 'score' needs 1 GPU"
        ]
        cluster.free = 1.0
        both = "not begun yet: stage 'sample' needs 2 GPUs, stage 'score' needs 1 GPU; 1 of 8 GPUs are free now"
        assert said_within(2 * SAY_SECONDS) == [both, both]
        cluster.free = 0.0
        with attempt(writer, 0, SAMPLE):
            scorer = "not begun yet: stage 'score' needs 1 GPU; 0 of 8 GPUs are free now"
            assert said_within(SAY_SECONDS) == [scorer]
        stall.move()
        assert said_within(SAY_SECONDS) == [scorer]
        stall.move(through=True)  # a shard is scored and written
        assert said_within(2 * SAY_SECONDS) == []


@pytest.mark.parametrize("free", [2.0, 8.0])
def test_a_job_hands_what_waits_to_what_watches_it(
    free: float, writer: NegativeSetWriter, cluster: ClusterStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline of a cluster whose actors do not come up."""
    looks: list[float] = []

    class RowsStub:
        def __init__(self, rows: Any):
            pass

        def next(self, seconds: float) -> Any:
            cluster.now += HOUR
            looks.append(cluster.now)
            return END if len(looks) == 6 else None

        def stop(self, seconds: float) -> bool:
            return True

    cluster.free = free
    monkeypatch.setattr(pipeline, "ray_started", contextlib.nullcontext)
    monkeypatch.setattr(pipeline, "_nodes", lambda: [Node(32, 8)])
    monkeypatch.setattr(pipeline, "_planned", lambda *_: (planned(), 1))
    monkeypatch.setattr(pipeline, "_results", lambda *_: iter(()))
    monkeypatch.setattr(pipeline, "Rows", RowsStub)
    work: Any = SimpleNamespace(writer=writer)
    told: dict[str, Any] = {"num_engines": 1, "on_written": print, "on_pause": lambda: False}
    if free < 8:
        run_pipeline(work, range(100), stall_timeout=2 * HOUR, **told)
    else:
        with pytest.raises(UserError, match="no worker has begun a shard"):
            run_pipeline(work, range(100), stall_timeout=2 * HOUR, **told)
    assert len(looks) == (6 if free < 8 else 3)
