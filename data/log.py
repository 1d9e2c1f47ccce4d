"""What the commands log: our own messages at INFO, the libraries' only from WARNING on."""

import logging

LIBRARIES = ("accelerate", "datasets", "filelock", "fsspec", "httpx", "sentence_transformers")


def start_logging() -> None:
    """Log to stderr; called once by each command, not on import."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
