"""One owner of a directory at a time: what a run claims before it writes, keeps by a heartbeat, and gives back.

A directory's claims lie in `.claim`: `00001.json`, `00002.json` ... each created, never replaced; the highest one is
the owner's. A run that takes over from a dead owner creates the next number, which only one run can. An owner says
every `BEAT` seconds in `TOKEN.beat` that it lives. `.claim` is gone once its owner has ended, unless by a kill.

Who is dead: a process of this host that is gone, at once; an owner on another host whose heartbeat stands still for
`DEAD_AFTER` seconds while we watch it, by our own clock, so that no two clocks are compared.

A process that was taken over from finds out before its next write (`check`): it may neither replace nor remove what its
successor has.
"""

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.command.errors import UserError
from data.command.wording import duration
from data.shape import Count, parse_shaped
from data.storage import Folder

log = logging.getLogger(__name__)

CLAIMS = ".claim"
BEAT = 10.0
DEAD_AFTER = 60.0
WATCH_EVERY = 1.0
MOST_PID = (1 << 31) - 1
OWNER_SHAPE = {
    **dict.fromkeys(("token", "host", "place", "started", "since"), str),
    "pid": Count(MOST_PID),
    "made": bool,
}


class TakenOver(UserError):
    """The directory is another run's by now."""


@dataclass(frozen=True)
class Owner:
    """A run, so that another can tell whether it is alive.

    Attributes:
        token: of this claim alone.
        host: name of its machine.
        place: boot and process namespace, within which `pid` and `started` (clock ticks since the boot) are unique.
        since: local time, for people.
        made: whether the directory was not there before it, or before those that it took over from.
    """

    token: str
    host: str
    place: str
    pid: int
    started: str
    since: str
    made: bool

    @classmethod
    def here(cls, *, made: bool) -> "Owner":
        """The owner that this process is."""
        return cls(
            uuid.uuid4().hex, socket.gethostname(), _place(), os.getpid(), _started(os.getpid()) or "",
            time.strftime("%Y-%m-%d %H:%M:%S %z"), made,
        )  # fmt: skip

    @property
    def is_near(self) -> bool:
        """Whether this process sees the owner's process, if it lives."""
        return (self.host, self.place) == (socket.gethostname(), _place())

    @property
    def is_gone(self) -> bool:
        """Whether the process of an owner that is near has ended."""
        found = _started(self.pid)
        # A later process of that number has another start, where both are known.
        return found is None or ("" not in (found, self.started) and found != self.started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class Claim:
    """The right to write into a directory; made by `take`. Copies in other processes can check it.

    Attributes:
        owner: this run.
        number: of the claim.
    """

    def __init__(self, folder: Folder, owner: Owner, number: int):
        self.folder, self.owner, self.number = folder, owner, number
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_ended", "_heart")}

    @classmethod
    def take(cls, folder: Folder) -> "Claim":
        """Claim a directory, from a dead owner if need be; may watch a heartbeat for `DEAD_AFTER` seconds.

        Raises:
            UserError: another run owns it, or the place cannot be written.
        """
        is_new = not folder.exists()
        while True:
            number, owner = _highest(folder)
            if number and not _is_dead(folder, number, owner):
                continue
            if number and not _lies_there(folder, number, owner):
                continue
            claim = cls(folder, Owner.here(made=is_new or (owner is not None and owner.made)), number + 1)
            if claim._create():
                if number and not _lies_there(folder, number, owner):
                    # Others took over from the dead owner and ended meanwhile; who claimed the directory anew has a
                    # lower number than ours, and may live.
                    folder.remove(_name(claim.number))
                    continue
                if number:
                    log.warning("'%s': taking over from %s, which is dead", folder.path, owner or "a damaged claim")
                claim._start_heart()
                return claim

    def _create(self) -> bool:
        """Put our claim in its place; False if another run was faster."""
        try:
            return self.folder.create(_name(self.number), json.dumps(asdict(self.owner)).encode())
        except UserError as error:
            # An owner that ended has just removed the folder of claims, while we were about to put ours there.
            if isinstance(error.__cause__, FileNotFoundError) and self.folder.is_local and self.folder.exists():
                return False
            self._remove_empty()
            raise

    def holds(self) -> bool:
        """Whether the directory is still ours."""
        number, owner = _highest(self.folder)
        return number == self.number and owner is not None and owner.token == self.owner.token

    def check(self) -> None:
        """Raise TakenOver if another run has taken the directory over, or its owner has ended."""
        if not self.holds():
            raise TakenOver(
                f"another run has taken over '{self.folder.path}', or the run that this process worked for has ended; "
                "this one stops. Run one at a time."
            )

    def end(self) -> None:
        """Give the directory back; a directory that the claim made is removed if it is empty. May be called again."""
        self._ended.set()
        if self._heart is not None:
            self._heart.join(BEAT)
        if not self.holds():
            return
        # Our own claim last: until then nobody can take another one. A successor's stays, which may have come just now.
        names = [name for name in self.folder.names(CLAIMS) if _number(name) <= self.number]
        for name in sorted(names, key=lambda name: (_number(name), name)):
            self.folder.remove(f"{CLAIMS}/{name}")
        self._remove_empty()

    def _remove_empty(self) -> None:
        self.folder.remove_if_empty(CLAIMS)
        if self.owner.made:
            self.folder.remove_if_empty()

    def _start_heart(self) -> None:
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()

    def _beat(self) -> None:
        number = 0
        while not self._ended.wait(BEAT):
            try:
                if not self.holds():
                    return
                number += 1
                self.folder.write(_beat_name(self.owner), str(number).encode())
            except Exception as error:  # a store that is away for a moment; what works will notice if it stays so
                log.debug("no heartbeat in '%s': %s", self.folder.path, error)


@contextmanager
def claimed(path: str) -> Iterator[Claim]:
    """Own a directory for a while. Raises UserError if another run owns it."""
    claim = Claim.take(Folder(path))
    try:
        yield claim
    finally:
        claim.end()


def _highest(folder: Folder) -> tuple[int, Owner | None]:
    """Number and owner of the highest claim: 0 if there is none, None if it is damaged."""
    names = folder.names(CLAIMS)
    number = max(map(_number, names), default=0)
    if number == 0:
        return 0, None
    content = folder.read_if_there(_name(number))
    if content is None:
        # Its owner has just ended, or it is no file but a link to nowhere, or a folder.
        return _highest(folder) if folder.names(CLAIMS) != names else (number, None)
    return number, _parsed(content)


def _lies_there(folder: Folder, number: int, owner: Owner | None) -> bool:
    """Whether a claim is still the one that was looked at: numbers begin again once `.claim` is gone."""
    content = folder.read_if_there(_name(number))
    return _parsed(content) == owner if content is not None else _name(number).partition("/")[2] in folder.names(CLAIMS)


def _parsed(content: bytes) -> Owner | None:
    """The owner that a claim's file names; None if it is damaged."""
    try:
        return Owner(**parse_shaped(content, OWNER_SHAPE))
    except (ValueError, TypeError):
        return None


def _is_dead(folder: Folder, number: int, owner: Owner | None) -> bool:
    """Whether the owner of the highest claim is dead; False if the claim went away while we watched.

    Raises:
        UserError: the owner lives.
    """
    if owner is not None and owner.is_near:
        if owner.is_gone:
            return True
        raise _in_use(folder, owner)
    log.warning(
        "'%s' is claimed by %s; watching its heartbeat for up to %s",
        folder.path,
        owner or "a damaged claim",
        duration(DEAD_AFTER),
    )
    first, deadline = _heard(folder, owner), time.monotonic() + DEAD_AFTER
    while time.monotonic() < deadline:
        time.sleep(WATCH_EVERY)
        if _highest(folder) != (number, owner):
            return False
        if owner is not None and _heard(folder, owner) != first:
            raise _in_use(folder, owner)
    return True


def _in_use(folder: Folder, owner: Owner) -> UserError:
    return UserError(
        f"'{folder.path}' is in use by another run ({owner}). Wait for its end, stop it, or choose another directory."
    )


def _heard(folder: Folder, owner: Owner | None) -> bytes | None:
    return folder.read_if_there(_beat_name(owner)) if owner is not None else None


def _name(number: int) -> str:
    return f"{CLAIMS}/{number:05d}.json"


def _beat_name(owner: Owner) -> str:
    return f"{CLAIMS}/{owner.token}.beat"


def _number(name: str) -> int:
    """The number that the name of a claim's file says; 0 for another file."""
    match = re.fullmatch(r"([0-9]{5}|[1-9][0-9]{5,})\.json", name)
    return int(match.group(1)) if match else 0


def _place() -> str:
    """This boot of this machine and this namespace of processes; empty where the system does not say."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process started, which tells it from a later one of the same number.

    None if it has ended, empty if it is there but the system does not say more (another user's, or no /proc).
    """
    try:
        # The second field is a name in brackets that may hold anything; the third is the state, the 22nd the start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
