"""What a command prints: here and nowhere else, so that no text of others reaches a terminal as it is."""

import sys

from data.command.cleaning import printable


def say(text: str, *, error: bool = False) -> None:
    """Print a text, with what could steer a terminal spelled out (see `printable`).

    Args:
        error: on stderr, beside the log; stdout holds what was asked for.
    """
    stream = sys.stderr if error else sys.stdout
    line = printable(text)
    try:
        print(line, file=stream, flush=True)
    except UnicodeEncodeError:  # a terminal without UTF-8
        encoding = stream.encoding or "ascii"
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def one_line(text: str) -> str:
    """A text whose line breaks and runs of white space are single blanks."""
    return " ".join(text.split())
