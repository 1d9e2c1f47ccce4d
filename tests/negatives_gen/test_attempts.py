"""A shard that kills its workers is set aside after three tries, and what stands still ends the job. Without Ray."""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Generator, Iterator
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.command.errors import UserError
from data.command.options import make_config
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from data.sources.examples import open_source
from data.storage import Folder
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components, SampleStage, new_row
from negatives_gen.job.attempts import (
    MAX_TRIES,
    Inside,
    SetAside,
    Stall,
    Told,
    attempt,
    loading_stage,
    suspect,
)
from negatives_gen.job.batching import work_on
from negatives_gen.job.inputs import stage_inputs
from negatives_gen.job.job import generate, make_work
from negatives_gen.job.pipeline import END, Rows
from negatives_gen.models.engine import Request, Sample
from tests.support.passing_time import ClockStub
from tests.support.stubs import EngineStub, ScorerStub, signals_stub
from tests.support.without_ray import without_ray


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[NegativeSetWriter]:
    writer = NegativeSetWriter(str(tmp_path / "set"), {}, ["embedding"])
    writer.begin()
    yield writer
    writer.end()


def dying(writer: NegativeSetWriter, index: int, stage: str) -> None:
    """A worker that is killed while it works."""
    process = get_context("fork").Process(target=_die, args=(writer, index, stage))
    process.start()
    process.join(30)
    assert process.exitcode == -9


def _die(writer: NegativeSetWriter, index: int, stage: str) -> None:
    with attempt(writer, index, stage):
        os.kill(os.getpid(), 9)


def test_a_shard_whose_workers_die_is_set_aside_and_the_last_is_named(writer: NegativeSetWriter) -> None:
    for _ in range(MAX_TRIES):
        dying(writer, 3, "sample")
    again = attempt(writer, 3, "sample")
    with pytest.raises(SetAside, match=r"died 3 times in stage 'sample' \(the last was process \d+ on "), again:
        raise AssertionError("worked on again")
    for index, stage in ((3, "score"), (4, "sample")):
        with attempt(writer, index, stage):
            pass


def _die_with_all(writer: NegativeSetWriter, indices: list[int]) -> None:
    """A worker that is killed while it has several shards in flight."""
    with contextlib.ExitStack() as flight:
        for index in indices:
            flight.enter_context(attempt(writer, index, "sample"))
        os.kill(os.getpid(), 9)


def test_of_shards_in_flight_together_the_one_that_kills_is_found_and_no_innocent_is_set_aside(
    writer: NegativeSetWriter,
) -> None:
    """Shard 2 kills whatever works on it: beside the others, then alone, as a suspect."""
    for flight in ([0, 1, 2, 3], [2], [2]):
        process = get_context("fork").Process(target=_die_with_all, args=(writer, flight))
        process.start()
        process.join(30)
        assert process.exitcode == -9
        assert [index for index in range(6) if suspect(writer, index, "sample")] == [0, 1, 2, 3]
    first = {f"0000{index}-sample-1" for index in range(4)}
    assert writer.folder.names("_job/tries") == {*first, "00002-sample-2", "00002-sample-3"}
    again = attempt(writer, 2, "sample")
    with pytest.raises(SetAside), again:
        raise AssertionError("worked on again")
    for innocent in (0, 1, 3):
        with attempt(writer, innocent, "sample"):
            assert suspect(writer, innocent, "sample")
        assert not suspect(writer, innocent, "sample")
    assert not suspect(writer, 2, "score")


def test_a_directory_that_nobody_has_claimed_has_no_suspects(tmp_path: Path) -> None:
    assert not suspect(NegativeSetWriter(str(tmp_path / "set"), {}, ["embedding"]), 0, "sample")


def test_an_actor_of_ray_is_named_by_its_id(
    writer: NegativeSetWriter, clock: "ClockStub", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("negatives_gen.job.attempts._actor", lambda: "a1b2")
    stall = Stall(writer.folder, 60)
    with attempt(writer, 7, "sample"):
        clock.pass_by(stall, 50)
        with pytest.raises(UserError, match=r"shard-00007.parquet is in stage 'sample' of actor a1b2 \(process \d+ on"):
            clock.pass_by(stall, 65)


def test_a_worker_that_dies_each_time_while_it_loads_ends_the_job(reference: Path, tmp_path: Path) -> None:
    work = make_work(config(reference, tmp_path / "set"), open_source("facts", "prompt-completion", "train", 20))
    work = dataclasses.replace(work, components=components(engine=_die_loading))
    assert work.writer.begin()
    stage_inputs(work.writer, open_source("facts", "prompt-completion", "train", 20), 8)
    for _ in range(MAX_TRIES):
        process = get_context("fork").Process(target=SampleStage, args=(work,))
        process.start()
        process.join(30)
        assert process.exitcode == -9
    row = work_on(SampleStage(work), new_row(0))
    assert re.match(r"a worker that loads its models died 3 times in stage 'sample' \(the last was", row["error"])
    work.writer.end()


@pytest.mark.parametrize(("said", "told"), [(True, {}), (False, {"max_model_len": 90})])
def test_the_engine_is_told_a_context_that_config_json_does_not_say(
    reference: Path, tmp_path: Path, said: bool, told: dict[str, int]
) -> None:
    model, given = shutil.copytree(reference, tmp_path / "model"), list[dict[str, Any]]()
    if not said:
        config_json = json.loads((model / "config.json").read_text())
        del config_json["max_position_embeddings"]
        (model / "config.json").write_text(json.dumps(config_json))
    job = dataclasses.replace(config(model, tmp_path / "set"), max_length=90)
    work = make_work(job, open_source("facts", "prompt-completion", "train", 20))
    engine_options = {"enforce_eager": True}

    def engine_stub(*_: Any, options: dict[str, Any], **__: Any) -> Any:
        given.append(options)
        return SimpleNamespace(slots=1)

    work = dataclasses.replace(work, engine_options=engine_options, components=components(engine=engine_stub))
    assert work.writer.begin()
    assert SampleStage(work).failure is None
    work.writer.end()
    assert given == [{**told, **engine_options}]


def _die_loading(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), 9)


def test_a_worker_that_hangs_while_it_loads_is_named(writer: NegativeSetWriter, clock: "ClockStub") -> None:
    stall = Stall(writer.folder, 60)
    with loading_stage(writer, "sample"):
        clock.pass_by(stall, 50)
        with pytest.raises(UserError, match=r"a worker that loads its models is in stage 'sample' of process \d+ on"):
            clock.pass_by(stall, 65)


def test_a_job_of_one_shard_that_is_set_aside_keeps_its_rows(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("negatives_gen.job.job.forget", lambda folder: _three_died(folder, 0))
    with without_ray(), pytest.raises(UserError, match="Its rows are in"):
        generate(config(reference, tmp_path / "set", groups_per_shard=20), components())
    assert (tmp_path / "set/_job/inputs/00000.jsonl").exists()


def test_a_worker_that_ends_or_fails_has_not_died(writer: NegativeSetWriter) -> None:
    dying(writer, 0, "sample")
    dying(writer, 0, "sample")
    for _ in range(MAX_TRIES):
        with pytest.raises(ValueError, match="a bug"), attempt(writer, 0, "sample"):
            raise ValueError("a bug")
    assert writer.folder.names("_job/tries") == set()


def test_a_worker_whose_driver_was_taken_over_from_does_not_begin(writer: NegativeSetWriter) -> None:
    assert writer.claim is not None
    writer.claim.end()
    with pytest.raises(UserError, match="has ended"), attempt(writer, 0, "sample"):
        raise AssertionError("worked on")


def config(reference: Path, out: Path, **options: Any) -> GenerateConfig:
    defaults = {"dataset": "facts", "limit": 20, "strategies": "an=2,bn=1", "groups_per_shard": 8}
    return make_config(
        GenerateConfig, **{"model": str(reference), "out": str(out), "embedder": "reference", **defaults, **options}
    )


def components(**others: Any) -> Components:
    return Components(**{"engine": EngineStub, "scorer": ScorerStub, "signals": signals_stub, **others})


def test_the_rest_of_a_job_is_finished_and_its_end_names_the_shard(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "set"
    monkeypatch.setattr("negatives_gen.job.job.forget", _three_died)
    with without_ray(), pytest.raises(UserError) as caught:
        generate(config(reference, out), components())
    said = str(caught.value)
    assert said.startswith(f"shard-00001.parquet of '{out}' was set aside: its worker died 3 times in stage 'score'")
    assert f"Its rows are in '{out}/_job/inputs/00001.jsonl'" in said
    assert sorted(path.name for path in out.glob("*.parquet")) == ["shard-00000.parquet", "shard-00002.parquet"]
    assert "shard-00001.parquet is set aside" in caplog.text
    monkeypatch.undo()
    with without_ray():
        generate(config(reference, out), components())  # which counts anew
    assert len(NegativeSet(str(out))) == 20


def _three_died(folder: Folder, index: int = 1) -> None:
    for number in range(1, MAX_TRIES + 1):
        folder.write(f"_job/tries/{index:05d}-score-{number}", json.dumps({"host": "a", "pid": 1}).encode())


class SilentEngineStub(EngineStub):
    """Gives as many samples as are asked for, without a token, or none."""

    samples = True

    def draw(self, request: Request) -> list[Sample]:
        samples = [dataclasses.replace(sample, ids=[], text="") for sample in super().draw(request)]
        return samples if self.samples else []


@pytest.mark.parametrize("samples", [True, False])
def test_an_engine_that_gives_nothing_is_an_error_and_no_rejects(
    samples: bool, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SilentEngineStub, "samples", samples)
    with without_ray(), pytest.raises(UserError, match="the engine gave not one token for the "):
        generate(config(reference, tmp_path / "set"), components(engine=SilentEngineStub))
    assert not (tmp_path / "set").exists()


class FailingScorerStub(ScorerStub):
    def score(self, groups: Any) -> Any:
        raise RuntimeError("a bug of ours\nwith more of it")


def test_what_a_worker_raises_is_one_line_with_the_shard_and_its_trace_is_in_the_log(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with without_ray(), caplog.at_level(logging.ERROR), pytest.raises(UserError) as caught:
        generate(config(reference, tmp_path / "set"), components(scorer=FailingScorerStub))
    assert str(caught.value) == "shard-00000.parquet, stage 'score': RuntimeError: a bug of ours"
    (record,) = caplog.records
    assert "in score\n    raise RuntimeError" in record.getMessage()


def test_what_a_workers_constructor_raises_is_one_line_too(reference: Path, tmp_path: Path) -> None:
    def broken_stub(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with without_ray(), pytest.raises(UserError, match=r"stage 'sample': OSError: \[Errno 28\] No space left"):
        generate(config(reference, tmp_path / "set"), components(engine=broken_stub))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ClockStub:
    return ClockStub(monkeypatch)


def test_a_shard_that_stands_still_is_named_with_stage_and_process(writer: NegativeSetWriter, clock: ClockStub) -> None:
    stall = Stall(writer.folder, 60)
    for index in range(4):  # something moves each time, so it may take longer than the limit
        with attempt(writer, index, "sample"):
            clock.pass_by(stall, 50)
    stall.move()
    with attempt(writer, 7, "score"):
        clock.pass_by(stall, 50)
        clock.pass_by(stall, 59)
        with pytest.raises(UserError) as caught:
            clock.pass_by(stall, 15)
    assert str(caught.value).startswith(
        "nothing has moved for 60 s (--stall_timeout): shard-00007.parquet is in stage 'score' of process "
        f"{os.getpid()} on "
    )


def test_a_job_whose_workers_do_not_come_up_says_so(writer: NegativeSetWriter, clock: ClockStub) -> None:
    stall = Stall(writer.folder, 60)
    clock.pass_by(stall, 15)
    with pytest.raises(UserError, match="no worker has begun a shard; it may be loading, or waiting for a machine"):
        clock.pass_by(stall, 60)


def test_a_job_without_a_stall_timeout_never_stalls(tmp_path: Path, clock: ClockStub) -> None:
    clock.pass_by(Stall(Folder(str(tmp_path)), 0), 1e9)


def test_how_far_a_stage_is_within_its_shards_is_told_by_its_marks(writer: NegativeSetWriter, clock: ClockStub) -> None:
    loading: list[str] = []
    told: list[list[Told]] = []
    inside = Inside(writer.folder, lambda stage, _: loading.append(stage), told.append)

    def look(after: float) -> None:
        clock.now += after
        inside.look()

    look(after=0)
    with loading_stage(writer, "sample"):
        look(after=1)
        look(after=10)
    assert loading == ["sample"]  # said once
    with attempt(writer, 3, "sample") as tell, attempt(writer, 12, "score") as tell_other:
        clock.now += 5
        tell(10, 512)  # too soon after the last write
        look(after=5)
        assert told == []
        tell(120, 512)
        tell(121, 512)
        tell_other(1, 8)
        look(after=9)  # too soon after the last look
        assert told == []
        look(after=1)
        look(after=10)  # nothing new
        assert told == [[Told(3, "sample", 120, 512), Told(12, "score", 1, 8)]]
        tell(200, 512)
        look(after=10)
        assert told[1:] == [[Told(3, "sample", 200, 512)]]
    tell(300, 512)
    clock.now += 100
    tell(300, 512)  # no mark of what is done comes back
    assert writer.folder.names("_job/tries") == set()
    with attempt(NegativeSetWriter("unclaimed", {}, []), 0, "sample") as tell:
        tell(1, 2)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1.0, "--stall_timeout must be 0"),
        (float("nan"), "'stall_timeout' of GenerateConfig must be a number, got nan"),
        (float("inf"), "'stall_timeout' of GenerateConfig must be a number, got inf"),
    ],
)
def test_a_stall_timeout_that_is_no_limit_is_refused(
    seconds: float, said: str, reference: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        config(reference, tmp_path, stall_timeout=seconds).check()


def test_rows_are_read_while_the_caller_looks_at_the_clock() -> None:
    def slow() -> Generator[dict[str, Any], None, None]:
        yield {"shard": 0, "error": ""}
        time.sleep(0.3)
        yield {"shard": 1, "error": ""}

    rows = Rows(slow())
    assert rows.next(5) == {"shard": 0, "error": ""}
    assert rows.next(0.01) is None
    assert rows.next(5) == {"shard": 1, "error": ""}
    assert rows.next(5) is END


def test_rows_behind_an_error_are_not_made() -> None:
    made: list[int | str] = []

    def rows_stub() -> Generator[dict[str, Any], None, None]:
        try:
            for index in range(3):
                made.append(index)
                yield {"shard": index, "error": "it is over"}
        finally:
            made.append("closed")

    iterator = rows_stub()  # held, as Ray's are: not closed by being forgotten
    rows = Rows(iterator)
    assert rows.next(5)["error"] == "it is over"
    assert rows.stop(5)
    assert made == [0, "closed"]


def test_an_error_of_ray_itself_is_one_line() -> None:
    def broken() -> Generator[dict[str, Any], None, None]:
        raise RuntimeError("Could not find an actor\nwith pages behind it")
        yield

    with pytest.raises(UserError, match=r"^Ray could not go on: RuntimeError: Could not find an actor\. The log"):
        Rows(broken()).next(5)
