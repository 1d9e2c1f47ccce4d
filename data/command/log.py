"""What the commands log: our own messages at INFO, the libraries' only from WARNING on; never a key or a home path."""

import json
import logging
import os
import sys

from data.command.cleaning import printable
from data.command.privacy import scrub
from data.command.terminal import beside_bars, is_terminal, people_read

MAIN = "__main__"
# Whose messages are ours: the rooms', and those of a command that runs as a script.
OURS = ("data", "negatives_gen", "trainer", "evaluation", MAIN)
LIBRARIES = ("accelerate", "datasets", "filelock", "fsspec", "httpx", "httpx2", "matplotlib", "sentence_transformers")

# Warnings that tell nothing here, by the beginnings of their words: too long a text is rejected, cut or counted by
# whoever has it tokenised; a model is saved with the special tokens of its tokenizer, as it should be.
TELLS_NOTHING = {
    "transformers.tokenization_utils_base": "Token indices sequence length is longer than",
    "transformers.trainer_utils": "The tokenizer has new PAD/BOS/EOS tokens",
}


class ScrubbingFormatter(logging.Formatter):
    """Formats a record, hides what must not be in a log and spells out what could steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(scrub(super().format(record)))


class JSONFormatter(logging.Formatter):
    """Makes a record one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "message": scrub(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = scrub(self.formatException(record.exc_info))
        return json.dumps(line)


class PeoplesHandler(logging.StreamHandler):
    """Writes our own records where people read, and those of libraries where libraries write, both on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == MAIN:
            record.name = _command()
        ours = record.name.partition(".")[0] in OURS
        self.stream = people_read(error=True) if ours else sys.stderr
        with beside_bars(self.stream):
            super().emit(record)


def start_logging(log_format: str = "text") -> None:
    """Log to stderr; called once by each command, not on import.

    Libraries, and processes that they start, show progress bars on a terminal alone.

    Args:
        log_format: "text", or "json" for one JSON object a line, warnings of Python included, and no progress bars.
    """
    handler = PeoplesHandler()
    if log_format == "json" or not is_terminal(error=True):
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported
    if log_format == "json":
        handler.setFormatter(JSONFormatter())
        logging.captureWarnings(True)
    else:
        handler.setFormatter(ScrubbingFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    for library in TELLS_NOTHING:
        logging.getLogger(library).addFilter(_tells_something)


def _command() -> str:
    """The module that `python -m` runs and that knows itself as "__main__", e.g. "data.blank"; else that word."""
    spec = getattr(sys.modules[MAIN], "__spec__", None)
    return spec.name.removesuffix(f".{MAIN}") if spec else MAIN


def _tells_something(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(TELLS_NOTHING[record.name])


def start_worker_logging() -> None:
    """Log warnings as a command does, in a process that a library started for it: Ray shows and keeps what it writes.

    Where something logs already, as in the command's own process, nothing changes.
    """
    root = logging.getLogger()
    if not root.handlers:
        start_logging()
        root.setLevel(logging.WARNING)


def logs_json() -> bool:
    """Whether this process logs JSON lines."""
    return any(isinstance(handler.formatter, JSONFormatter) for handler in logging.getLogger().handlers)
