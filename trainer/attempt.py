"""A run until its first optimiser step: what fails before that leaves the output directory as it was."""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.command.errors import UserError
from trainer.setup import SETUP_ERRORS, cannot_set_up


class Attempt(TrainerCallback):
    """A context that gives the output directory up where its block fails before the first optimiser step.

    So the corrected command finds no record of another job. What was in the directory before stays, and so does all of
    it until this run has claimed it: then it may be another run's.

    Args:
        output: the output directory.
        model: as the user named it, for the message.

    Attributes:
        claimed: to be set once the directory is this process's to write to.
    """

    def __init__(self, output: Path, model: str):
        self.output, self.model = output, model
        self.claimed = False
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
        if self.claimed:
            for path in self.output.iterdir():
                if path.name not in (self._before or ()):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if self._before is None and not any(self.output.iterdir()):
            self.output.rmdir()
