"""Errors for people: one clear line that says what is wrong, where, and what to do."""

import difflib
import errno
import functools
import logging
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

from data.command.log import logs_json
from data.command.privacy import scrub
from data.command.terminal import one_line, say

# Of every command: one goes on, another starts anew, and a third asks for --resume_from_checkpoint or another --out.
INTERRUPTED = "interrupted; the same command goes on, starts anew or says what to do"


# What the system refuses whatever a program does: permissions, space, a broken disk.
REFUSALS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
}
# Of libraries written in Rust: safetensors has a class of its own, tokenizers raises a bare Exception.
OS_ERROR = re.compile(r"\(os error (\d+)\)")
TORCH_WRITER = re.compile("PytorchStreamWriter|inline_container|iostream error")  # a RuntimeError that does not say why


class UserError(ValueError):
    """Bad input. The message is a single line meant for the user, without a stack trace."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known word, or "" if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f" Did you mean '{near[0]}'?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its class where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def user_error_in(error: BaseException | None) -> UserError | None:
    """Find the UserError that a framework (Ray, a thread pool) wrapped on its way to us.

    Ray keeps the original exception in `.cause` and gives its wrapper the original's class too; `raise ... from`
    keeps it in `__cause__`. An error that merely occurred while a UserError was handled (`__context__`) is an error
    of its own.
    """
    return next((cause for cause in _causes(error) if isinstance(cause, UserError)), None)


def refused_by_system(error: BaseException | None) -> str:
    """Why the system did not let a file be read or written, with its name where that is known; "" of another error."""
    for cause in _causes(error):
        name, number = "", None
        if isinstance(cause, OSError):
            name, number = str(cause.filename or ""), cause.errno
        elif type(cause).__name__ in ("SafetensorError", "Exception") and (found := OS_ERROR.search(str(cause))):
            number = int(found.group(1))
        elif isinstance(cause, RuntimeError) and TORCH_WRITER.search(str(cause)):
            return "a file could not be written whole"
        if number in REFUSALS:
            return ": ".join(filter(None, [name, os.strerror(number)]))
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what caused it, as far as somebody said so; of Ray's wrappers only what they wrap."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None)
        if isinstance(cause, BaseException):
            error = cause
        else:
            yield error
            error = error.__cause__


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int]:
    """Make a command's main() print a UserError as one line on stderr and return exit code 2; of Ctrl+C 130.

    So too what the system refuses, such as a write on a full disk.

    Where nobody reads the output any more, as behind `| head`, it ends without a word.

    Where the command logs JSON the line is a record of the log. Any other error is raised; the trace that the
    interpreter ends with has no key in it and nothing that could steer a terminal.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        sys.excepthook = _show_trace
        try:
            code = main(argv) or 0
            sys.stdout.flush()  # here, where a reader that is gone is no trace at the interpreter's end
            return code
        except KeyboardInterrupt:  # not left to Python, or to the hook that torch puts in its place: they show a trace
            _say(INTERRUPTED)
            return 128 + signal.SIGINT
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _reader_is_gone():
                return 128 + signal.SIGPIPE
            said = user_error_in(error)
            refused = "" if said else refused_by_system(error)
            if not (said or refused):
                raise
            _say(str(said or f"{refused}. Check permissions and free space, then run the same command."), "error: ")
            return 2

    return wrapped


def _reader_is_gone() -> bool:
    """Whether nobody reads our output any more, as behind `| head`; if so, the rest of it goes nowhere."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _show_trace(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    say(scrub("".join(traceback.format_exception(kind, error, trace)).rstrip()), error=True)


def _say(text: str, prefix: str = "") -> None:
    line = one_line(text)
    if logs_json():
        logging.getLogger(__name__).error(line)
    else:
        say(prefix + scrub(line), error=True)
