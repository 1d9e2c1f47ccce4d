"""The actor of the engine: while a shard loads the others go on, and the engine ends where its stage is closed."""

import asyncio
import dataclasses
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

from data.command.options import make_config
from data.schema import Group
from data.sources.examples import open_source
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components, SampleStage, Work, new_row
from negatives_gen.job.inputs import Shard
from negatives_gen.job.job import make_work
from tests.support.answering import facts_groups
from tests.support.stubs import EngineStub, ScorerStub, signals_stub


class SlowSource:
    """Each shard but the first loads until the one before it has been passed on, or for 20 s.

    Attributes:
        passed_on: by shard.
        waited: whether the shard before had been passed on in time.
        most: shards that loaded at a time.
    """

    def __init__(self, groups: list[Group], shards: int):
        self.groups, self.passed_on = groups, [threading.Event() for _ in range(shards)]
        self.waited: list[bool] = []
        self.loading = self.most = 0

    def load(self, index: int) -> Shard:
        self.loading += 1
        self.most = max(self.most, self.loading)
        if index:
            self.waited.append(self.passed_on[index - 1].wait(timeout=20))
        self.loading -= 1
        groups = [dataclasses.replace(group, negatives=[]) for group in self.groups]
        return Shard(groups, list(groups), [])


def work_of(reference: Path, out: Path, engine: Any = EngineStub) -> Work:
    config = make_config(
        GenerateConfig,
        model=str(reference), dataset="facts", limit=8, out=str(out), strategies="an=2", embedder="reference",
    )  # fmt: skip
    components = Components(engine=engine, scorer=ScorerStub, signals=signals_stub)
    return make_work(config, open_source("facts", "prompt-completion", "train", 8), components)


def test_while_a_shard_loads_the_others_are_sampled_and_passed_on(reference: Path, tmp_path: Path) -> None:
    source = SlowSource(facts_groups(reference, 4), 4)
    stage = SampleStage(dataclasses.replace(work_of(reference, tmp_path / "set"), source=source))  # type: ignore[arg-type]

    async def made(index: int) -> dict[str, Any]:
        row = await stage(new_row(index))
        source.passed_on[index].set()
        return row

    async def run() -> list[dict[str, Any]]:
        return await asyncio.gather(*map(made, range(4)))

    rows = asyncio.run(run())
    stage.close()
    assert [(row["shard"], row["error"]) for row in rows] == [(index, "") for index in range(4)]
    assert source.waited == [True, True, True]
    assert source.most == 1


def test_a_stage_that_is_closed_lets_its_engine_go(reference: Path, tmp_path: Path) -> None:
    made: list[weakref.ref[EngineStub]] = []

    def engine_stub(*arguments: Any, **options: Any) -> EngineStub:
        engine = EngineStub(*arguments, **options)
        made.append(weakref.ref(engine))
        return engine

    before = set(threading.enumerate())
    stage = SampleStage(work_of(reference, tmp_path / "set", engine_stub))
    assert {thread.name for thread in set(threading.enumerate()) - before} == {"engine"}
    stage.close()
    assert set(threading.enumerate()) <= before
    del stage
    gc.collect()
    assert [engine() for engine in made] == [None]
