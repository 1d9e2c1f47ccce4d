"""Going on from a checkpoint, where transformers' Trainer would go wrong."""

import logging
from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

log = logging.getLogger(__name__)


class SoundResumption:
    """Lets a transformers Trainer go on from any checkpoint; to be inherited from beside it.

    From one of the last step it trains one more, where --max_steps ends in mid-epoch (transformers 5.17: it asks
    whether to stop after a step only); so it does from one at which training was stopped early. Of a tied head, which
    is saved once, it warns that it is missing.
    """

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        trainer: Any = self
        stopped = trainer.control.should_training_stop  # before the first step: by `EarlyStopping`
        if stopped or trainer.state.global_step >= trainer.state.max_steps:
            done = "training was stopped early" if stopped else f"all {trainer.state.max_steps} steps are done already"
            log.info("%s: the model is saved", done)
            trainer.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]  # the Trainer's

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        trainer: Any = self
        tied = getattr(trainer.model, "all_tied_weights_keys", None) or {}
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))  # type: ignore[misc]


class EarlyStopping(EarlyStoppingCallback):
    """transformers' callback, which here goes on counting where a run is resumed.

    transformers keeps the number of evaluations in a row that were no better in each checkpoint, and restores it only
    together with its own control flags.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        stored: Any = state.stateful_callbacks
        kept = stored.setdefault(type(self).__name__, self.state())
        self.early_stopping_patience_counter = kept["attributes"]["early_stopping_patience_counter"]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


def was_stopped_early(state: dict[str, Any]) -> bool:
    """Whether a checkpoint was saved when training was stopped early.

    Args:
        state: its trainer_state.json, of the shape `trainer.resume.STATE`.
    """
    kept = (state.get("stateful_callbacks") or {}).get(EarlyStopping.__name__)
    if kept is None:
        return False
    return kept["attributes"]["early_stopping_patience_counter"] >= kept["args"]["early_stopping_patience"]
