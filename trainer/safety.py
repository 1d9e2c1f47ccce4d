"""SIGTERM, which clusters send before they take a machine away, saves a checkpoint and ends the run."""

import signal
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


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
