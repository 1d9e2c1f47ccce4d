"""What a command prints: here and nowhere else, so that no text of others reaches a terminal as it is."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from data.command.cleaning import printable

# As wide as tables are where nobody looks at a terminal: a file, a pipe, a log of CI.
PLAIN_WIDTH = 100

# What people read, stdout and stderr, while the process's own lead elsewhere (`data.command.library_output`).
_people: tuple[TextIO, TextIO] | None = None


def show_people(streams: tuple[TextIO, TextIO] | None) -> None:
    """Let `say` use these streams, stdout and stderr, from now on; None: the process's own."""
    global _people
    _people = streams


def people_read(*, error: bool) -> TextIO:
    """The stream that people read."""
    if _people is not None:
        return _people[error]
    return sys.stderr if error else sys.stdout


def say(text: str, *, error: bool = False) -> None:
    """Print a text, with what could steer a terminal spelled out (see `printable`).

    Args:
        error: on stderr, beside the log; stdout holds what was asked for.
    """
    stream = people_read(error=error)
    line = printable(text)
    with beside_bars(stream):
        try:
            print(line, file=stream, flush=True)
        except UnicodeEncodeError:  # a terminal without UTF-8
            encoding = stream.encoding or "ascii"
            print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def is_terminal(*, error: bool) -> bool:
    """Whether a person looks at what is printed on stdout, or on stderr; else it is a file, a pipe or a log of CI."""
    isatty = getattr(people_read(error=error), "isatty", None)
    return isatty is not None and isatty()


def width() -> int:
    """Columns that tables may take on stdout: the terminal's, or PLAIN_WIDTH where there is none; $COLUMNS decides."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        # Of the stream that people read: the process's own may lead to a file meanwhile.
        return os.get_terminal_size(people_read(error=False).fileno()).columns or PLAIN_WIDTH
    except (AttributeError, OSError, ValueError):
        return PLAIN_WIDTH


@contextmanager
def beside_bars(stream: TextIO) -> Iterator[None]:
    """Take tqdm's bars off a terminal while something is written to it, and put them below what was written."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if not getattr(bars, "_instances", None):
        yield
        return
    with bars.external_write_mode(file=stream):  # type: ignore[union-attr]  # there are some
        yield


def one_line(text: str) -> str:
    """A text whose line breaks and runs of white space are single blanks."""
    return " ".join(text.split())
