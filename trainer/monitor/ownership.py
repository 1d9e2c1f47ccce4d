"""A run whose output directory another run has taken over stops before it writes there."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.claim import Claim


class StopIfTakenOver(TrainerCallback):
    """A guard: raise UserError before a step is logged or saved by a run that lost its output directory to another.

    Args:
        claim: of the output directory.
    """

    def __init__(self, claim: Claim):
        self.claim = claim

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_log or control.should_save:
            self.claim.check()
