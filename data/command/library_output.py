"""What libraries print: into a file while a command works, and shown only where something fails.

vLLM, Ray, its workers, torch and their C++ write to stdout and stderr as they like. While `library_output_to` lasts,
both lead to a file, by their descriptors, so that threads, child processes and C++ are caught too. What this project
says (`data.command.terminal.say`, our loggers) still reaches the terminal. Our warnings in Ray's workers come with what
Ray forwards from there: they are found in the file and logged again.
"""

import contextlib
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from data.command.errors import UserError
from data.command.log import OURS
from data.command.terminal import show_people
from data.storage import Folder

log = logging.getLogger(__name__)

# How a worker's log line looks in what Ray forwards: "(MapWorker(Map(ScoreStage)) pid=5826) WARNING data.x: words".
OUR_LINE = re.compile(rf"(?:\(.*?pid=\d+.*?\) )?(WARNING|ERROR|CRITICAL) ((?:{'|'.join(OURS)})[\w.]*): (.*)")
BAR = re.compile(r"\d+%(\||\s+Completed)")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Lines that may explain a failure, and how many of them are shown.
EXPLAINS = re.compile(r"error|exception|fatal|failed|abort|killed|out of memory|cannot|no space", re.I)
SHOWN = 12
LOOKED_THROUGH = 1_000_000  # bytes at the end
# Ray forwards a worker's lines a moment later.
QUIET_SECONDS, LAST_SECONDS = 0.5, 2.0


class LibraryOutput:
    """The file that libraries write to.

    Args:
        path: of the file; "" where they write to the terminal.
    """

    def __init__(self, path: str):
        self.path = path
        self._read = 0

    def relay(self) -> None:
        """Log our own workers' warnings that have come since the last call."""
        whole, newline, _ = self._content(self._read).rpartition(b"\n")
        self._read += len(whole + newline)
        for line in _lines(whole):
            if match := OUR_LINE.fullmatch(line):
                level, name, words = match.groups()
                logging.getLogger(name).log(logging.getLevelNamesMapping()[level], "in a worker: %s", words)

    def explain(self) -> None:
        """Show the last lines that may explain a failure, those of ours left out."""
        lines = [line for line in self.last_lines() if EXPLAINS.search(line)]
        found = [line for line in lines if not OUR_LINE.fullmatch(line)][-SHOWN:]
        if found:
            log.error("what libraries said last:\n%s", "\n".join(f"  {line}" for line in found))

    def last_lines(self) -> list[str]:
        """The last lines of the file, without progress bars."""
        content = self._content(max(0, self._size() - LOOKED_THROUGH))
        return [line for line in _lines(content) if not BAR.search(line)]

    def settle(self) -> None:
        """Wait until nothing more comes, or for LAST_SECONDS."""
        end, size = time.monotonic() + LAST_SECONDS, -1
        while size != (size := self._size()) and time.monotonic() < end:
            time.sleep(QUIET_SECONDS)

    def _size(self) -> int:
        """Bytes of the file; 0 where there is none any more, as another run has taken over."""
        return os.path.getsize(self.path) if os.path.exists(self.path) else 0

    def _content(self, start: int) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                return file.read()
        except FileNotFoundError:
            return b""


@contextmanager
def library_output_to(folder: Folder | None, name: str, *, verbose: bool = False) -> Iterator[LibraryOutput]:
    """Let libraries write to a file while the block lasts; without a local folder to one in a temporary folder.

    The file is removed if the block ends well, or if it holds progress bars at most. Where the block fails what may
    explain it is shown, and a UserError names the file.

    Args:
        folder, name: of the file; one of an earlier run is replaced. None: of a command that writes nothing.
        verbose: let libraries write to the terminal.
    """
    if verbose:
        yield LibraryOutput("")
        return
    lasting = folder is not None and folder.is_local
    path = folder / name if folder and lasting else f"{tempfile.mkdtemp(prefix='library-output-')}/log"
    output = LibraryOutput(path)
    try:
        with _new_file(path) as file, _diverted(file.fileno()):
            if folder is not None:  # else it is named where the block fails
                log.info("what libraries print goes to '%s'", path)
            try:
                yield output
            except Exception as error:
                output.settle()
                output.relay()
                output.explain()
                if output.last_lines():
                    _name_file(error, path)
                raise
            output.relay()
    except BaseException:
        if not output.last_lines():
            _remove(path, lasting)
        raise
    _remove(path, lasting)


def _new_file(path: str) -> BinaryIO:
    """A new file in the place of an earlier one, which a run that was taken over from may still write to."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).unlink(missing_ok=True)
    return open(path, "ab", buffering=0)


def _remove(path: str, lasting: bool) -> None:
    Path(path).unlink(missing_ok=True)
    if not lasting:
        os.rmdir(os.path.dirname(path))


@contextmanager
def _diverted(file: int) -> Iterator[None]:
    """Let stdout and stderr lead to a file; people read where both led before."""
    before = sys.stdout, sys.stderr
    kept = {1: os.dup(1), 2: os.dup(2)}
    _flush()
    try:
        with contextlib.ExitStack() as opened:
            people: list[TextIO] = []
            for name, stream, number in (("stdout", before[0], 1), ("stderr", before[1], 2)):
                if _descriptor(stream) == number:  # the object stays, as libraries have kept it
                    words = {"encoding": stream.encoding, "errors": stream.errors}
                    people.append(opened.enter_context(open(kept[number], "w", buffering=1, closefd=False, **words)))
                else:  # a notebook's, or a test's
                    people.append(stream)
                    setattr(sys, name, open(os.dup(file), "w", buffering=1, encoding="utf-8", errors="replace"))  # noqa: SIM115  # libraries keep it
            os.dup2(file, 1)
            os.dup2(file, 2)
            show_people((people[0], people[1]))
            try:
                yield
            finally:
                show_people(None)
                _flush()
    finally:
        sys.stdout, sys.stderr = before
        for number, descriptor in kept.items():
            os.dup2(descriptor, number)
            os.close(descriptor)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):  # no file
        return None


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _name_file(error: BaseException, path: str) -> None:
    """Let a UserError say where the rest is; of other errors people see the trace."""
    if isinstance(error, UserError):
        error.args = (f"{str(error).rstrip('.')}. What libraries printed is in '{path}'.",)
    else:
        log.error("what libraries printed is in '%s'", path)


def _lines(content: bytes) -> list[str]:
    """The lines of an output as a terminal would show them in the end: without colours, of a progress bar its last."""
    text = COLOURS.sub("", content.decode(errors="replace"))
    lines = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n"))
    return [line for line in lines if line]
