"""What the commands log: our own messages at INFO, the libraries' only from WARNING on; never a key or a home path."""

import logging

from data.privacy import scrub

LIBRARIES = ("accelerate", "datasets", "filelock", "fsspec", "httpx", "httpx2", "sentence_transformers")


class ScrubbingFormatter(logging.Formatter):
    """Formats a record and hides what must not be in a log."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


def start_logging() -> None:
    """Log to stderr; called once by each command, not on import."""
    handler = logging.StreamHandler()
    handler.setFormatter(ScrubbingFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
