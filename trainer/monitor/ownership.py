"""A run whose output directory another run has taken over stops before it writes there."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.claim import Claim


class StopIfTakenOver(TrainerCallback):
    """A guard: raise UserError where a run would log, evaluate, save or draw that lost its output directory to another.

    Its place is behind the callbacks that decide what is due, and before those that write.

    Args:
        claim: of the output directory.
    """

    def __init__(self, claim: Claim):
        self.claim = claim

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._check_if_due(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """transformers logs, evaluates and saves at an epoch's end too, with no step's end in between."""
        self._check_if_due(control)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.claim.check()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """An evaluation, which may take hours, and the end of training log without a step or an epoch that ends."""
        self.claim.check()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.claim.check()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.claim.check()

    def _check_if_due(self, control: TrainerControl) -> None:
        if control.should_log or control.should_evaluate or control.should_save:
            self.claim.check()
