"""What draws training.png, as a callback that looks at a run's logs."""

import logging
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.command.errors import UserError
from data.storage import Folder
from trainer.monitor.curves import figure, png

log = logging.getLogger(__name__)

CURVES_FILE = "training.png"
SHARE = 0.02  # of a run's time, that is drawn in at logs


class Curves(TrainerCallback):
    """Draws OUTPUT_DIR/training.png from the logs so far, first at the first log, last at the end.

    In between at each checkpoint, and at logs in so far as that takes at most 2% of the time.
    """

    def __init__(self) -> None:
        self._due = 0.0  # a drawing of 1 s makes the next log's due 50 s after it began

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if time.perf_counter() >= self._due:
            self._draw(args, state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step != state.max_steps:  # there the end, which comes next, would draw the same again
            self._draw(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._draw(args, state)

    def _draw(self, args: TrainingArguments, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        began = time.perf_counter()
        try:
            Folder(str(args.output_dir)).write(CURVES_FILE, png(figure(state.log_history)))
        except UserError as error:  # the model is saved after this
            log.warning("%s is not drawn: %s", CURVES_FILE, error)
        self._due = began + (time.perf_counter() - began) / SHARE
