"""Processes that kill themselves at a point that is armed: `python -m tests.support.kill_points ARMED [--no-ray] ...`.

ARMED is a folder with one file per armed point. Whichever process of the job reaches the point first removes the file
and dies by SIGKILL, so the same command goes on where it was killed, and a point is reached once. Points are:

- "before NAME" and "after NAME": the rename or link that puts a file of the set in its place, in whichever process
  writes it;
- "half of _job": the job's folder is removed when the set is finished; it dies with half of it gone;
- "sample": the actor of the engine, when it is asked for a group's answers and has begun at least two shards, for which
  it waits; what is in flight then it leaves in a file beside ARMED (`in_flight`);
- "told": the driver, when it hears of its first shard.

Engine, scorer and signal are stubs under Ray, where each start of an actor would import torch; without Ray the scorer
is the real one.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from data.command.errors import exit_on_user_error
from data.command.log import start_logging
from data.command.options import load_config
from data.storage import Folder
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from negatives_gen.job.progress import Progress
from negatives_gen.models.engine import Request, Sample
from tests.support.stubs import EngineStub, ScorerStub, signals_stub
from tests.support.without_ray import without_ray


@dataclass(frozen=True)
class ArmedStub:
    """The points of a set that are armed."""

    folder: Path
    out: str

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a worker of Ray: for its tokenizers transformers would import torch and scikit-learn at every start, which
        takes seven seconds of processor time; stubs need neither."""
        for name in ("sklearn", "torch"):
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]
        self.__dict__.update(state)

    def reach(self, point: str) -> None:
        try:
            (self.folder / file_of(point)).unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def reach_in_flight(self) -> None:
        """Reach "sample" when this process has begun two shards, and say which they are and what is finished."""
        if not (self.folder / "sample").exists():
            return
        job, marks = Path(self.out) / "_job", list[Path]()
        for _ in range(600):
            marks = sorted((job / "tries").glob("[0-9]*-sample-1"))
            if len(marks) >= 2:
                break
            time.sleep(0.1)
        begun = {mark.name: json.loads(mark.read_bytes()) for mark in marks}
        finished = [path.name for path in [*Path(self.out).glob("*.parquet"), *job.glob("shard-*.json")]]
        record = {"pid": os.getpid(), "begun": begun, "finished": finished}
        self.folder.with_suffix(".json").write_text(json.dumps(record))
        self.reach("sample")

    def install(self) -> None:
        """Let this process die from here on where it would put in place or remove a file whose point is armed."""
        remove = Folder.remove

        def killed_stub(put: Callable[[str, str], None]) -> Callable[[str, str], None]:
            def put_stub(source: str, target: str) -> None:
                name = os.path.relpath(target, self.out)
                self.reach(f"before {name}")
                put(source, target)
                self.reach(f"after {name}")

            return put_stub

        def remove_stub(folder: Folder, name: str) -> None:
            if name == "_job" and (self.folder / file_of("half of _job")).exists():
                shutil.rmtree(Path(self.out) / "_job/inputs")
                (Path(self.out) / "_job/job.json").unlink()
                self.reach("half of _job")
            remove(folder, name)

        for name in ("os.replace", "os.link"):
            mock.patch(name, killed_stub(getattr(os, name.removeprefix("os.")))).start()
        mock.patch.object(Folder, "remove", remove_stub).start()


@dataclass(frozen=True)
class MakeEngineStub:
    """Makes the engine of an actor that may die when it is asked."""

    armed: ArmedStub

    def __call__(self, model: str, *, options: dict[str, Any]) -> EngineStub:
        armed = self.armed

        class EngineKilledStub(EngineStub):
            def draw(self, request: Request) -> list[Sample]:
                armed.reach_in_flight()
                return super().draw(request)

        return EngineKilledStub(model, options=options)


@dataclass(frozen=True)
class MakeScorerStub:
    """Makes the scorer of an actor that may die while it writes."""

    armed: ArmedStub

    def __call__(self, model: str, **options: Any) -> ScorerStub:
        self.armed.install()
        return ScorerStub(model, **options)


def arm(folder: Path, *points: str) -> Path:
    """A folder in which these points are armed."""
    folder.mkdir()
    for point in points:
        (folder / file_of(point)).touch()
    return folder


def in_flight(folder: Path) -> dict[str, Any]:
    """What point "sample" has left: "pid"; "begun": mark of a shard -> what it says; "finished": files of shards."""
    return json.loads(folder.with_suffix(".json").read_bytes())


def file_of(point: str) -> str:
    return point.replace("/", ":")


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    folder, *words = sys.argv[1:] if argv is None else argv
    alone = "--no-ray" in words
    words = [word for word in words if word != "--no-ray"]
    config = load_config(GenerateConfig, words, command="tests.support.kill_points")
    start_logging()
    armed = ArmedStub(Path(folder), config.out)
    armed.install()

    class ProgressKilledStub(Progress):
        def shard(self, *arguments: Any, **more: Any) -> None:
            super().shard(*arguments, **more)
            armed.reach("told")

    with mock.patch("negatives_gen.job.job.Progress", ProgressKilledStub):
        if alone:
            with without_ray():
                generate(config, Components(engine=MakeEngineStub(armed), signals=signals_stub))
        else:
            generate(config, Components(MakeEngineStub(armed), MakeScorerStub(armed), signals_stub))


if __name__ == "__main__":
    # By its name: the classes are pickled for the workers, who know no __main__ of ours.
    from tests.support.kill_points import main as imported

    sys.exit(imported())
