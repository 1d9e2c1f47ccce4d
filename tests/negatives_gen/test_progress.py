"""What people, clusters and trackers see of a running job. Without Ray."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from data.command.errors import UserError
from data.command.options import make_config
from data.manifest import Manifest, ShardRecord, shard_name
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from data.storage import Folder
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components, Work
from negatives_gen.job.attempts import Inside, Mark, Stall, Told, attempt, loading_stage
from negatives_gen.job.job import generate
from negatives_gen.job.pipeline import END, follow
from negatives_gen.job.progress import Progress, print_outcome
from tests.support.chat_server import ChatAPIStub, said
from tests.support.stubs import EngineStub, ScorerStub, signals_stub
from tests.support.without_ray import pipeline_without_ray_stub, without_ray
from tests.support.written import scalars, trackio_run


def config(reference: Path, out: Path, **options: Any) -> GenerateConfig:
    defaults = {"dataset": "facts", "limit": 20, "strategies": "an=2", "groups_per_shard": 8, "embedder": "reference"}
    return make_config(GenerateConfig, **{"model": str(reference), "out": str(out), **defaults, **options})


STUBS = Components(engine=EngineStub, scorer=ScorerStub, signals=signals_stub)


def test_progress_is_text_for_people_and_json_for_clusters(capsys: pytest.CaptureFixture[str]) -> None:
    for log_format in ("text", "json"):
        progress = Progress(4, 1, log_format)
        progress.shard(3, rows=7, rejected=1, tokens=70)
        progress.shard(2, rows=8, rejected=0, tokens=80)
    lines = capsys.readouterr().err.splitlines()
    progress.loading("sample", 0.0)
    progress.inside([Told(3, "sample", 120, 512, "an")])
    loading, inside = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (loading["event"], loading["stage"]) == ("loading", "sample")
    assert (inside["event"], inside["shards"]) == (
        "progress",
        [{"shard": 3, "stage": "sample", "done": 120, "of": 512, "strategy": "an", "signal": "", "part": ""}],
    )  # fmt: skip
    assert lines[0] == "4 shards, 3 to do"
    assert lines[2].startswith("3 of 4 shards written: 15 groups, 1 rejected, 150 negative tokens, ")
    assert lines[2].endswith(" left")
    assert "left" not in lines[1]  # the start of the engine would count as work
    start, first, last = (json.loads(line) for line in lines[3:])
    assert first["seconds_left"] is None
    assert (start["event"], start["shards"], start["shards_done"]) == ("start", 4, 1)
    assert {key: last[key] for key in ("event", "shard", "groups", "rejected", "tokens", "shards_done")} == {
        "event": "shard", "shard": 2, "groups": 15, "rejected": 1, "tokens": 150, "shards_done": 3,
    }  # fmt: skip
    assert last["seconds_left"] >= 0
    assert last["tokens_per_second"] > 0


def test_progress_within_shards_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(4, 0, "text")
    progress.loading("sample", 0.0)
    progress.inside([Told(3, "sample", 120, 512, "rn"), Told(1, "score", 8, 16)])
    progress.inside([Told(2, "ask", 40, 96, "un"), Told(1, "score", 256, 900, signal="embedding")])
    progress.inside([Told(1, "score", 4, 16, "mn"), Told(2, "score", 9, 16, "mn", part="further rounds")])
    assert capsys.readouterr().err.splitlines()[1:] == [
        "starting the engine (about 60 s)",
        "shard 4 of 4: 120 of 512 groups sampled (rn); shard 2 of 4: 8 of 16 groups scored",
        "shard 3 of 4: 40 of 96 answers written (un); shard 2 of 4: 256 of 900 texts compared (embedding)",
        "shard 2 of 4: 4 of 16 groups with negatives (mn); shard 3 of 4: 9 of 16 groups with negatives (mn, further "
        "rounds)",
    ]


@pytest.mark.seconds
def test_trackers_are_told_of_every_shard(
    reference: Path, tmp_path: Path, trackio_folder: Path, server: ChatAPIStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three shards with three kinds of rejects, sampled and written by an API; what both trackers keep of the run."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rows = [{"prompt": f"Number {number} is", "completion": f" number {number}"} for number in range(20)]
    rows[3]["completion"] = rows[12]["completion"] = ""
    rows[17] = rows[0]
    server.refuse = lambda request: "Number 10 is" in said(request)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"dataset": str(tmp_path / "rows.jsonl"), "limit": None, "streaming": True, "strategies": "an=2,un=1"}
    options |= {"api": {"model": "m", "base_url": server.url}, "report_to": "tensorboard,trackio"}
    with without_ray():
        manifest = generate(config(reference, tmp_path / "told", **options), STUBS)
    assert manifest.counts["rejected_by_reason"] == {
        "empty response": 2, "duplicate": 1, "too few un negatives": 1,
    }  # fmt: skip
    whole = [manifest.shards[: n + 1] for n in range(3)]
    slots = [shard.slot_seconds or {} for shard in manifest.shards]
    filled, there = (sum(one[name] for one in slots) for name in ("filled", "all"))
    assert manifest.occupancy == pytest.approx(filled / there)
    assert 0 < filled < there
    expected: dict[str, list[float | None]] = {
        "shards": [1, 2, 3],
        "groups": [7, 11, 16],
        "rejected": [1, 3, 4],
        "rejected_by_reason/empty response": [1, 2, 2],
        "rejected_by_reason/too few un negatives": [None, 1, 1],
        "rejected_by_reason/duplicate": [None, None, 1],
        "tokens": [sum(shard.tokens["negatives"] for shard in shards) for shards in whole],
        "occupancy": [
            sum(one["filled"] for one in slots[:n]) / sum(one["all"] for one in slots[:n]) for n in (1, 2, 3)
        ],
        "shard/occupancy": [shard.occupancy for shard in manifest.shards],
        **{
            f"shard/seconds/{stage}": [shard.seconds[stage] for shard in manifest.shards]
            for stage in ("an", "un", "score", "embedding")
        },
        "api/requests": [7, 12, 17],
        "api/output_tokens": [7, 11, 16],
    }
    in_tensorboard = scalars(tmp_path / "told-tensorboard/told")
    in_trackio = trackio_run(trackio_folder, "told")
    assert [step for step, _ in in_trackio] == [1, 2, 3]
    measured = {"tokens_per_second", "seconds", "api/input_tokens"}
    assert in_tensorboard.keys() == in_trackio[-1][1].keys() == expected.keys() | measured
    for name, values in expected.items():
        kept = [(step, value) for step, value in enumerate(values, 1) if value is not None]
        assert in_tensorboard[name] == [(step, pytest.approx(value)) for step, value in kept], name
        found = [(step, told[name]) for step, told in in_trackio if name in told]
        assert found == [(step, pytest.approx(value)) for step, value in kept], name
    for name in measured:
        assert all(value > 0 for _, value in in_tensorboard[name])


def test_an_interrupted_job_is_one_curve(reference: Path, tmp_path: Path) -> None:
    made: list[Any] = []

    class FailingScorerStub(ScorerStub):
        def score(self, groups: Sequence[Any]) -> list[list[float]]:
            made.append(groups)
            if len(made) == 3:
                raise RuntimeError("a bug")
            return super().score(groups)

    rows = [{"prompt": f"Number {number} is", "completion": f" {number}" if number else ""} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"dataset": str(tmp_path / "rows.jsonl"), "limit": None, "streaming": True, "report_to": "tensorboard"}
    with without_ray(), pytest.raises(UserError, match="a bug"):
        generate(config(reference, tmp_path / "set", **options), dataclasses.replace(STUBS, scorer=FailingScorerStub))
    with without_ray():
        manifest = generate(config(reference, tmp_path / "set", **options), STUBS)
    found = scalars(tmp_path / "set-tensorboard/set")
    assert found["shards"] == [(1, 1), (2, 2), (3, 3)]
    assert found["groups"] == [(1, 7), (2, 13), (3, 19)]
    assert found["rejected_by_reason/empty response"] == [(1, 1), (2, 1), (3, 1)]
    # MLflow's store of files makes folders of the slashes: no name may be such a folder and a number too.
    assert not [(name, other) for name in found for other in found if other.startswith(f"{name}/")]
    assert found["tokens"][-1] == (3, sum(shard.tokens["negatives"] for shard in manifest.shards))
    assert found["occupancy"][-1] == (3, pytest.approx(manifest.occupancy))
    first = manifest.shards[0].slot_seconds or {}
    assert found["occupancy"][0] == (1, pytest.approx(first["filled"] / first["all"]))
    assert not [tag for tag in found if tag.startswith("api/")]


def test_the_last_words_say_how_full_the_engine_was_over_all_shards(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"rows_read": 9, "rows_written": 8, "rows_rejected": 1, "rows_truncated": 0}
    records = [
        ShardRecord(shard_name(index), 4, 4, 0, 0, 1, "", {}, {}, "packed", share, slots)
        for index, (share, slots) in enumerate(
            [(0.9, {"filled": 9.0, "all": 10.0}), (0.1, {"filled": 3.0, "all": 6.0})]
        )
    ]
    manifest = Manifest(4, {}, {}, {}, None, [], {**counts, "rejected_by_reason": {"bad": 1}}, records, {})
    print_outcome(manifest, "set")
    assert capsys.readouterr().out.splitlines() == [
        "9 rows read, 8 groups written, 1 rejected (1 bad)",
        "engine 75% occupied, over all shards",
        "negative set: set",
    ]
    print_outcome(manifest, "set", "json")
    assert json.loads(capsys.readouterr().out)["occupancy"] == 0.75
    manifest.shards = []
    print_outcome(manifest, "set", "json")
    assert "occupancy" not in json.loads(capsys.readouterr().out)


class RowsStub:
    """So many looks of the driver without a row, `seconds` apart; what goes on meanwhile is told by number."""

    def __init__(self, clock: dict[str, float], looks: int, seconds: float, meanwhile: Callable[[int], None]):
        self.clock, self.looks, self.seconds, self.meanwhile = clock, looks, seconds, meanwhile
        self.number = 0

    def next(self, seconds: float) -> Any:
        self.number += 1
        self.clock["now"] += self.seconds
        self.meanwhile(self.number)
        return END if self.number > self.looks else None


@pytest.mark.parametrize("gets_further", [True, False])
def test_a_shard_that_says_how_far_it_is_does_not_stand_still(
    gets_further: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"now": 1000.0}
    monkeypatch.setattr("negatives_gen.job.attempts.time.monotonic", lambda: clock["now"])
    writer = NegativeSetWriter(str(tmp_path / "set"), {}, ["embedding"])
    assert writer.begin()
    inside, stall = Inside(writer.folder, print, print), Stall(writer.folder, 60)
    with attempt(writer, 3, "sample") as tell:
        rows: Any = RowsStub(clock, 10, 25, lambda number: tell(number if gets_further else 1, 512))
        if gets_further:
            follow(rows, None, stall, inside.look)  # type: ignore[arg-type]  # there is no row to take
        else:
            with pytest.raises(UserError, match=r"nothing has moved for 60 s .*shard-00003.parquet is in stage"):
                follow(rows, None, stall, inside.look)  # type: ignore[arg-type]
    writer.end()


def test_the_driver_looks_every_ten_seconds_once_it_has_seen_any_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look is a request to an object store, and a short loading leaves no mark to be seen."""
    clock, looks = {"now": 1000.0}, list[float]()
    monkeypatch.setattr("negatives_gen.job.attempts.time.monotonic", lambda: clock["now"])

    class FolderStub(Folder):
        def names(self, folder: str = "") -> set[str]:
            looks.append(clock["now"])
            return super().names(folder)

    writer = NegativeSetWriter(str(tmp_path / "set"), {}, ["embedding"])
    assert writer.begin()
    inside = Inside(FolderStub(writer.folder.path), print, print)

    def look_for(seconds: int) -> list[float]:
        looks.clear()
        for _ in range(seconds):
            clock["now"] += 1
            inside.look()
        return [at - 1000 for at in looks]

    assert look_for(3) == [1, 2, 3]
    with attempt(writer, 0, "score"):
        assert look_for(23) == [4, 14, 24]
    assert look_for(13) == [34]
    writer.end()


def test_that_a_worker_still_loads_is_said_every_half_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = {"now": 1000.0}
    monkeypatch.setattr("negatives_gen.job.attempts.time.monotonic", lambda: clock["now"])
    writer = NegativeSetWriter(str(tmp_path / "set"), {}, ["embedding"])
    assert writer.begin()
    progress = Progress(1, 0, "text")
    inside = Inside(writer.folder, progress.loading, progress.inside)
    with loading_stage(writer, "sample"):
        for _ in range(75):
            inside.look()
            clock["now"] += 1
    inside.look()
    writer.end()
    assert capsys.readouterr().err.splitlines() == [
        "1 shard, 1 to do",
        "starting the engine (about 60 s)",
        "still starting the engine, after 30 s",
        "still starting the engine, after 60 s",
    ]


@contextmanager
def looking_at_each_word(folder: Path) -> Iterator[list[Told]]:
    """What the stages of a job say of how far they are, each word: the watcher looks as soon as one is said."""
    told: list[Told] = []
    inside = Inside(Folder(str(folder)), lambda *_: None, told.extend)
    tell = Mark.tell

    def tell_and_look(mark: Mark, *done: Any, **more: Any) -> None:
        tell(mark, *done, **more)
        inside.look()

    with mock.patch("negatives_gen.job.attempts.TELL_SECONDS", 0.0), mock.patch.object(Mark, "tell", tell_and_look):
        yield told


def test_strategies_that_sample_are_told_apart_within_a_shard(reference: Path, tmp_path: Path) -> None:
    with without_ray(), looking_at_each_word(tmp_path / "set") as told:
        generate(config(reference, tmp_path / "set", strategies="an=1,rn=1", groups_per_shard=20), STUBS)
    sampled = [one for one in told if one.stage == "sample"]
    assert list(dict.fromkeys(one.strategy for one in sampled)) == ["an", "rn"]
    for strategy in ("an", "rn"):
        assert [one.done for one in sampled if one.strategy == strategy] == list(range(1, 21))
    assert {(one.shard, one.of) for one in sampled} == {(0, 20)}


def test_what_scores_a_shard_says_how_far_it_is_strategy_by_strategy_and_signal_by_signal(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real scorer and embedder; each word that a stage says is seen."""
    monkeypatch.setattr("negatives_gen.signals.base.BATCHES_A_PART", 1)
    options = {"strategies": "mn=2,tn=1", "mn_rounds": 2, "signals": "embedding,rouge", "groups_per_shard": 20}
    with without_ray(), looking_at_each_word(tmp_path / "set") as told:
        generate(config(reference, tmp_path / "set", **options))
    found = NegativeSet(str(tmp_path / "set"))
    texts = {text for group in found.groups() for text in (group.response, *(c.text for c in group.negatives))}
    kinds = list(dict.fromkeys((one.strategy, one.signal, one.part, one.of) for one in told))
    assert kinds == [
        ("mn", "", "first round", 20),
        ("mn", "", "further rounds", 20),
        ("", "", "", 20),
        ("", "embedding", "", len(texts)),
        ("", "rouge", "", 60),
    ]
    done = {kind: [one.done for one in told if (one.strategy, one.signal, one.part, one.of) == kind] for kind in kinds}
    assert done[kinds[1]] == list(range(1, 21))
    assert done[kinds[3]] == [*range(8, len(texts), 8), len(texts)]
    assert done[kinds[4]] == list(range(1, 61))
    assert all(numbers[-1] == kind[3] for kind, numbers in done.items())
    assert {(one.shard, one.stage) for one in told} == {(0, "score")}


def test_a_job_says_that_an_engine_starts_and_what_its_workers_warn_of(
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heard: list[list[str]] = []

    def warn(words: str) -> None:
        os.write(2, f"(MapWorker(Map(ScoreStage)) pid=7) WARNING data.models: {words}\n".encode())

    def hear() -> None:
        heard.append([r.getMessage() for r in caplog.records if r.getMessage().startswith("in a worker: ")])

    def pipeline_stub(work: Work, shards: Sequence[int], *, on_pause: Callable[[], bool], **options: Any) -> None:
        class LoadingEngineStub(EngineStub):
            def __init__(self, *arguments: Any, **options: Any):
                assert not on_pause()
                super().__init__(*arguments, **options)

        warn("first")
        hear()
        components = dataclasses.replace(work.components, engine=LoadingEngineStub)
        pipeline_without_ray_stub(dataclasses.replace(work, components=components), shards, **options)
        hear()
        warn("last")

    monkeypatch.setattr("negatives_gen.job.job.run_pipeline", pipeline_stub)
    with caplog.at_level(logging.WARNING):
        generate(config(reference, tmp_path / "set"), STUBS)
    hear()
    first, last = "in a worker: first", "in a worker: last"
    assert heard == [[], [first], [first, last]]
    assert capsys.readouterr().err.splitlines().count("starting the engine (about 60 s)") == 1
