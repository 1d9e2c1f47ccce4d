"""Going on from a checkpoint, where transformers' Trainer would go wrong."""

import logging
from typing import Any

log = logging.getLogger(__name__)


class SoundResumption:
    """Lets a transformers Trainer go on from any checkpoint; to be inherited from beside it.

    From one of the last step it trains one more, where --max_steps ends in mid-epoch (transformers 5.17: it asks
    whether to stop after a step only). Of a tied head, which is saved once, it warns that it is missing.
    """

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        trainer: Any = self
        if trainer.state.global_step >= trainer.state.max_steps:
            log.info("all %d steps are done already: the model of the last one is saved", trainer.state.max_steps)
            trainer.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]  # the Trainer's

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        trainer: Any = self
        tied = getattr(trainer.model, "all_tied_weights_keys", None) or {}
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))  # type: ignore[misc]
