"""A run until its first optimiser step: what fails before that leaves the output directory as it was."""

import shutil
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.claim import Claim
from data.command.errors import UserError
from trainer.setup import SETUP_ERRORS, cannot_set_up


class Attempt(TrainerCallback):
    """A context that gives the output directory up where its block fails before the first optimiser step.

    So the corrected command finds no record of another job. What was in the directory before stays, and all of it
    where this run has not begun to write, or does not own it any more: then it is another run's.

    Args:
        output: the output directory.
        model: as the user named it, for the message.
        claim: of the directory; None in a process that does not write there.

    Attributes:
        writes: to be set before this process writes to the directory.
    """

    def __init__(self, output: Path, model: str, claim: Claim | None):
        self.output, self.model, self.claim = output, model, claim
        self.writes = False
        self._stepped = False
        self._before = {path.name for path in output.iterdir()} if output.is_dir() else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._stepped = True

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the attempt up on an error. Raises UserError for those of frameworks that options or files cause."""
        if error is None or self._stepped:
            return
        self._give_up()
        if isinstance(error, SETUP_ERRORS) and not isinstance(error, UserError):
            raise cannot_set_up(self.model, error) from error

    def _give_up(self) -> None:
        if not self.output.is_dir():
            return
        if self.writes and self.claim is not None:
            _remove_others(self.output, self._before or (), self.claim)
        if self._before is None and not any(self.output.iterdir()):
            self.output.rmdir()


def _remove_others(output: Path, kept: Collection[str], claim: Claim) -> None:
    """Remove all but some entries of a directory, each only while it is ours: a successor's have the same names."""
    for path in output.iterdir():
        if path.name in kept:
            continue
        if not _holds(claim):
            return
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _holds(claim: Claim) -> bool:
    """Whether the directory is known to be ours: where that cannot be read, nothing of it is removed."""
    try:
        return claim.holds()
    except UserError:
        return False
