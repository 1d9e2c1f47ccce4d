"""Which shards are being worked on, and how often one has killed the process that worked on it.

Whatever kills a worker (a row that the engine dies of, the memory killer of Ray or of the system), Ray starts it again
and gives it the same shard, without end. So a stage leaves a mark in `_job/tries` before it works on a shard and
removes it afterwards, also when it fails: a mark that stays is a worker that died. After `MAX_TRIES` the shard is set
aside. A worker that loads its models leaves one too: of one that dies while it loads, each time, the job ends.

A worker that has several shards in flight dies of one and leaves the marks of all. Each of them is a suspect from then
on, and is to be worked on alone (`suspect`): so the one that kills is found, and an innocent gets no second mark.

The marks also say to the driver what is going on (`Inside`), and what stands still (`Stall`).
"""

import json
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from data.command.errors import UserError
from data.command.wording import duration
from data.manifest import shard_name
from data.set_directory import INPUTS, SetDirectory
from data.shape import IfThere, parse_shaped
from data.shard_records import JOB_FOLDER
from data.storage import Folder
from negatives_gen.job.waiting import GpuWait

log = logging.getLogger(__name__)

TRIES = f"{JOB_FOLDER}/tries"
MAX_TRIES = 3
# A mark is rewritten, and the driver looks, no more often: on an object store each is a request.
TELL_SECONDS = 10.0
# That a worker still loads is said so often.
STILL_SECONDS = 30.0
MARK = re.compile(r"(?P<what>\w+)-(?P<stage>\w+)-\d+")
# What a stage calls with the number of things that are done and of all, and with what else `Told` says of them.
Tell = Callable[..., None]


class SetAside(Exception):
    """A shard that is not worked on any more in this run; says why."""


class ShardsSetAside(UserError):
    """The end of a job of which some shards were set aside and all others are finished."""


@contextmanager
def attempt(directory: SetDirectory, index: int, stage: str) -> Iterator[Tell]:
    """Work on a shard in a stage. A directory that nobody has claimed, as of a plan, keeps no marks.

    Returns:
        What the stage may call as often as it likes, from any thread, to let the driver say how far it is.

    Raises:
        SetAside: the shard's workers have died too often.
        UserError: another run owns the directory by now.
    """
    with _marked(directory, f"{index:05d}", stage) as (died, mark):
        if died:
            raise SetAside(f"its worker {died}, out of memory or of one of its rows")
        yield mark.tell


def suspect(directory: SetDirectory, index: int, stage: str) -> bool:
    """Whether a worker of this stage died while this shard was in flight, of it or of another one beside it.

    To be asked before the shard's `attempt` begins. A suspect's attempt begins when the worker has nothing else in
    flight, and nothing else begins before it ends.
    """
    return directory.claim is not None and bool(_marks(directory.folder, f"{index:05d}-{stage}"))


@contextmanager
def loading_stage(directory: SetDirectory, stage: str) -> Iterator[None]:
    """Load what a stage needs.

    Raises:
        UserError: this worker has died too often while it did so, or another run owns the directory by now.
    """
    with _marked(directory, f"load{_actor()}", stage) as (died, _):
        if died:
            raise UserError(
                f"a worker that loads its models {died}, out of memory or of a model. The log of Ray and that of the "
                "system have more."
            )
        yield


@contextmanager
def _marked(directory: SetDirectory, what: str, stage: str) -> Iterator[tuple[str, "Mark"]]:
    """Leave a mark while the block lasts. Gives how those died who left the others, once there are too many."""
    if directory.claim is None:
        yield "", Mark(directory, "")
        return
    directory.check()
    folder, marks = directory.folder, _marks(directory.folder, f"{what}-{stage}")
    if len(marks) >= MAX_TRIES:
        died = f"died {len(marks)} times in stage '{stage}' (the last was {_worker(folder, marks[-1])})"
        yield died, Mark(directory, "")
        return
    mark = Mark(directory, f"{what}-{stage}-{len(marks) + 1}")
    mark.leave()
    try:
        yield "", mark
    finally:
        for name in marks:
            folder.remove(f"{TRIES}/{name}")
        mark.remove()


class Mark:
    """A mark of this process; it may say how far its work is.

    Args:
        name: its file in `TRIES`; "" for a mark that is nowhere.
    """

    def __init__(self, directory: SetDirectory, name: str):
        self.directory, self.name = directory, name
        self._lock = threading.Lock()
        self._written = 0.0

    def leave(self, **more: int | str) -> None:
        """Write the mark, with what else it says."""
        content = {"host": socket.gethostname(), "pid": os.getpid(), "actor": _actor(), **more}
        self.directory.folder.write(f"{TRIES}/{self.name}", json.dumps(content).encode())
        self._written = time.monotonic()

    def tell(self, done: int, of: int, strategy: str = "", signal: str = "", part: str = "") -> None:
        """Say how far the work is; written at most every `TELL_SECONDS`."""
        if not self.name or time.monotonic() - self._written < TELL_SECONDS:
            return
        with self._lock:
            if self.name and time.monotonic() - self._written >= TELL_SECONDS:
                try:
                    self.directory.check()
                    self.leave(done=done, of=of, strategy=strategy, signal=signal, part=part)
                except UserError as error:  # what works will notice, as of a heartbeat
                    self._written = time.monotonic()
                    log.debug("no progress in '%s': %s", self.directory.folder.path, error)

    def remove(self) -> None:
        """Remove the mark; nothing is told any more."""
        with self._lock:
            self.directory.folder.remove(f"{TRIES}/{self.name}")
            self.name = ""


def forget(folder: Folder) -> None:
    """Begin to count anew, as each run does."""
    folder.remove(TRIES)


def refuse_set_aside(folder: Folder, aside: dict[int, str]) -> None:
    """Raise ShardsSetAside if shards were set aside.

    Args:
        aside: shard -> why.
    """
    if not aside:
        return
    index = min(aside)
    more = f" {len(aside) - 1} more were set aside, see the log." if len(aside) > 1 else ""
    raise ShardsSetAside(
        f"{shard_name(index)} of '{folder.path}' was set aside: {aside[index]}.{more} All other shards are finished. "
        f"Its rows are in '{folder.path}/{INPUTS}/{index:05d}.jsonl'; the same command tries again what is missing."
    )


@dataclass(frozen=True)
class Told:
    """How far a stage is within a shard: so many of its groups (of stage `ask` answers, of a signal texts) are done.

    Attributes:
        strategy: that they are done for; "" of what is scored by the reference, and of a signal.
        signal: the ranking signal that they are done for.
        part: which part of its work a strategy is at, in words, where it goes over the groups more than once.
    """

    shard: int
    stage: str
    done: int
    of: int
    strategy: str = ""
    signal: str = ""
    part: str = ""


class Inside:
    """What the marks say of what goes on inside of stages.

    Args:
        on_loading: called for each stage when a worker first loads what it needs, and now and then while it does; with
            the seconds that have passed since.
        on_told: called with what is new of the shards that are worked on, in their order.
    """

    def __init__(self, folder: Folder, on_loading: Callable[[str, float], None], on_told: Callable[[list[Told]], None]):
        self.folder, self.on_loading, self.on_told = folder, on_loading, on_told
        self.loading: dict[str, tuple[float, float]] = {}  # stage -> when it was first said, and last
        self.told: set[Told] = set()
        self.at_work = False  # whether a worker has ever been seen
        self.looked = -TELL_SECONDS

    def look(self) -> bool:
        """Look, at most every `TELL_SECONDS`, or every second until there is a worker. Whether a shard got further."""
        now = time.monotonic()
        if now - self.looked < (TELL_SECONDS if self.at_work else 1.0):
            return False
        self.looked = now
        marks = [match for match in map(MARK.fullmatch, sorted(self.folder.names(TRIES))) if match]
        self.at_work = self.at_work or bool(marks)
        for what, stage in (match.groups() for match in marks):
            if what.isdecimal():
                continue
            first, last = self.loading.get(stage, (now, now - STILL_SECONDS))
            if now - last >= STILL_SECONDS:
                self.loading[stage] = first, now
                self.on_loading(stage, now - first)
        found = [told for match in marks if match["what"].isdecimal() and (told := self._read(match))]
        if new := [told for told in found if told not in self.told]:
            self.told = set(found)
            self.on_told(new)
        return bool(new)

    def _read(self, match: re.Match[str]) -> Told | None:
        try:
            shape = {"done": int, "of": int, "strategy": str, "signal": str, "part": str}
            content = parse_shaped(self.folder.read(f"{TRIES}/{match.group()}"), shape)
        except (FileNotFoundError, ValueError):  # it is done, or has not said anything yet
            return None
        return Told(int(match["what"]), match["stage"], **{key: content[key] for key in shape})


class Stall:
    """Notices when no shard is begun, gets further or is done for some time.

    Args:
        seconds: how long; 0: for ever.
        wait: the stages that wait for GPUs which others hold: while nothing else is at work, it is they that are waited
            for, and not a stall.
    """

    def __init__(self, folder: Folder, seconds: float, wait: GpuWait | None = None):
        self.folder, self.seconds, self.wait = folder, seconds, wait
        self.every = min(10.0, seconds / 4) if seconds else 10.0
        self.seen: set[str] | None = None
        self.moved = self.looked = time.monotonic()

    def move(self, through: bool = False) -> None:
        """Count the limit from now on: a shard says that it got further, or is `through` all stages: none waits."""
        self.moved = time.monotonic()
        if self.wait and through:
            self.wait.stages = []

    def check(self) -> None:
        """Raise UserError if nothing has moved for too long; looks at most every few seconds."""
        now = time.monotonic()
        if now - self.looked < self.every:
            return
        self.looked = now
        names = self.folder.names(TRIES)
        marks = [match for match in map(MARK.fullmatch, names) if match]
        waiting = self.wait.look(marks) if self.wait else []
        at_work = {match.group() for match in marks if match["stage"] not in waiting}
        if at_work != self.seen or (waiting and not at_work):
            self.seen, self.moved = at_work, now
        elif self.seconds and now - self.moved >= self.seconds:
            raise UserError(
                f"nothing has moved for {duration(self.seconds)} (--stall_timeout): {self._at_work(names)}. Raise it "
                "if that is how long a stage says nothing; finished shards stay, and the same command goes on."
            )

    def _at_work(self, names: set[str]) -> str:
        matches = [match for match in map(MARK.fullmatch, sorted(names)) if match]
        at_work = [
            f"{shard_name(int(what)) if what.isdecimal() else 'a worker that loads its models'} is in stage '{stage}' "
            f"of {_worker(self.folder, match.group())}"
            for match in matches[:5]
            for what, stage in [match.groups()]
        ]
        more = [f"and {len(matches) - 5} more"] if len(matches) > 5 else []
        return (
            ", ".join([*at_work, *more]) or "no worker has begun a shard; it may be loading, or waiting for a machine"
        )


def _actor() -> str:
    """What Ray calls this worker, however often it starts it again; empty without Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return ""
    return ray.get_runtime_context().get_actor_id() or ""


def _marks(folder: Folder, what: str) -> list[str]:
    return sorted(name for name in folder.names(TRIES) if re.fullmatch(rf"{what}-\d+", name))


def _worker(folder: Folder, mark: str) -> str:
    try:
        worker = parse_shaped(folder.read(f"{TRIES}/{mark}"), {"pid": int, "host": str, "actor": IfThere(str)})
    except (FileNotFoundError, ValueError):
        return "a worker"
    process = f"process {worker['pid']} on {worker['host']}"
    return f"actor {worker['actor']} ({process})" if worker.get("actor") else process
