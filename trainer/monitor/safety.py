"""What ends a run early without harm: a value that is not finite, in a step or in what is saved, and SIGTERM.

Clusters send SIGTERM before they take a machine away: it saves a checkpoint.
"""

import math
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from data.command.errors import UserError, refused_by_system

WEIGHT_FILES = "model*.safetensors*", "adapter_model.safetensors"


def check_finite(
    accelerator: Any, model: nn.Module, loss: torch.Tensor, step: int, ids: Sequence[str], unsound: Sequence[str]
) -> None:
    """Stop before the optimiser step if loss or gradient is not finite. All processes stop together.

    Args:
        loss: this process's, of the whole step.
        step: number of the step, from 1.
        ids: the groups of the step, of this process.
        unsound: those of them whose loss was not finite, as far as that is known.

    Raises:
        UserError: the loss or a gradient is not finite.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    # float16's scaler lets gradients overflow on purpose and skips such steps by itself.
    scaled = accelerator.scaler is not None
    norm: Any = loss if scaled else nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    worst: Any = accelerator.gather((loss + norm.to(loss)).reshape(1))
    if bool(torch.isfinite(worst).all()):
        return
    what = f"the loss ({loss.item():g})" if not math.isfinite(loss.item()) else "a gradient"
    blamed = f" The loss of these is not finite: {', '.join(unsound)}." if unsound else ""
    raise UserError(
        f"{what} of step {step} is not finite; stopped before the optimiser step.{blamed} Groups of the step "
        f"(process {accelerator.process_index}): {', '.join(ids)}. Look at them with `python -m negatives_gen "
        "inspect DIR --row ID`; try a smaller --learning_rate or --beta from the last checkpoint."
    )


class SoundSaves:
    """Lets a transformers Trainer save finite weights only, and whole; to be inherited from beside it.

    The check before an optimiser step finds what the steps before it have done; nothing else looks at what the last one
    has, or the last one before a checkpoint, from which no run could go on.
    """

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, as transformers does.

        Raises:
            UserError: a weight that was trained is not finite; nothing was written. All processes stop together. Or
                the place cannot be written; no half of a file of weights stays.
        """
        trainer: Any = self
        check_weights(trainer.accelerator, trainer.model, trainer.state.global_step)
        place = Path(output_dir or trainer.args.output_dir)
        with _written_whole(place):
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]  # the Trainer's

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        trainer: Any = self
        place = Path(trainer.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
        with _written_whole(place):
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]  # the Trainer's


@contextmanager
def _written_whole(place: Path) -> Iterator[None]:
    """Where the system refuses to write, raise UserError, and remove the directory if it is new, else what changed of
    its weights: a half of them must not look like a model."""
    is_new, before = not place.exists(), _weights(place)
    try:
        yield
    except Exception as error:
        refused = refused_by_system(error)
        if not refused:
            raise
        if is_new:
            shutil.rmtree(place, ignore_errors=True)
        for path, state in _weights(place).items():
            if before.get(path) != state:
                path.unlink(missing_ok=True)
        if isinstance(error, UserError):  # of the model within a checkpoint
            raise
        raise UserError(
            f"cannot save '{place}': {refused}. Check permissions and free space; then the same command goes on from "
            "the last whole checkpoint, if there is one, with --resume_from_checkpoint true."
        ) from error


def _weights(place: Path) -> dict[Path, tuple[int, int, int]]:
    """The files of weights in a directory, with what tells whether one was written since."""
    states = {path: path.stat() for pattern in WEIGHT_FILES for path in place.glob(pattern)}
    return {path: (state.st_ino, state.st_size, state.st_mtime_ns) for path, state in states.items()}


@torch.no_grad()
def check_weights(accelerator: Any, model: nn.Module, step: int) -> None:
    """Raise UserError if a weight that is trained is nan or infinite, in any process's part of it.

    Args:
        step: the optimiser steps made so far.
    """
    wrong = []
    weights: Any = model.named_parameters()  # under FSDP each is a DTensor, of which a process has its part
    for name, weight in weights:
        local = weight.to_local() if hasattr(weight, "to_local") else weight
        if weight.requires_grad and not bool(torch.isfinite(local).all()):
            wrong.append(name)
    numbers: Any = accelerator.gather(torch.tensor([len(wrong)], device=accelerator.device))
    if int(numbers.sum()) == 0:
        return
    named = f", {wrong[0]} first" if wrong else ""
    raise UserError(
        f"after step {step} {int(numbers.max())} of the weights that are trained are not finite{named}; nothing was "
        "saved. Try a smaller --learning_rate or a larger --adam_epsilon, from the last checkpoint."
    )


class CheckpointOnSigterm(TrainerCallback):
    """After SIGTERM to any process: finish the optimiser step, save a checkpoint, stop training.

    Attributes:
        stopped: whether that has happened.
    """

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.received = False
        self.stopped = False
        self._before: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._before = signal.signal(signal.SIGTERM, self._receive)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self._anywhere():
            return
        self.stopped = state.global_step < state.max_steps
        args.save_only_model = False  # it is to be gone on from
        control.should_save = True
        control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _receive(self, *_: Any) -> None:
        self.received = True

    def _anywhere(self) -> bool:
        """All processes must save together, whichever received the signal."""
        if self.accelerator.num_processes == 1:
            return self.received
        received: Any = self.accelerator.gather(torch.tensor([self.received], device=self.accelerator.device))
        return bool(received.any())
