"""metrics.jsonl: each log of a training run as one line of JSON."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.command.errors import UserError
from data.storage import Folder
from trainer.output import METRICS_FILE

log = logging.getLogger(__name__)


class MetricsFile(TrainerCallback):
    """Each log as one JSON line {"step": ..., ...} of OUTPUT_DIR/metrics.jsonl; null is what is no finite number.

    At the start the file becomes the history that training starts from: none, or the checkpoint's. So what a run
    logged after the checkpoint it is resumed from, its last words and half a line included, is gone.
    """

    def __init__(self) -> None:
        self._complete = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the file with the log that the run goes on from. Raises UserError if it cannot be written."""
        if state.is_world_process_zero:
            self._rewrite(args, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The last step is logged, also where it is not on --logging_steps."""
        if state.global_step >= state.max_steps and args.logging_strategy != "no":
            control.should_log = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Append the last log; a full disk costs a warning, not the training, and the next log makes up for it."""
        if not state.is_world_process_zero:
            return
        try:
            if self._complete:
                self._complete = False
                with (Path(str(args.output_dir)) / METRICS_FILE).open("a", encoding="utf-8") as file:
                    file.write(json_line(state.log_history[-1]))
            else:
                self._rewrite(args, state)
            self._complete = True
        except (OSError, UserError) as error:
            log.warning("%s lacks step %d and goes on: %s", METRICS_FILE, state.global_step, error)

    def _rewrite(self, args: TrainingArguments, state: TrainerState) -> None:
        lines = "".join(json_line(logs) for logs in state.log_history)
        Folder(str(args.output_dir)).write(METRICS_FILE, lines.encode())


def json_line(logs: Mapping[str, Any]) -> str:
    """One log as a line: the step first, then sorted keys, the order that a checkpoint keeps its history in."""
    values = {"step": logs["step"], **{key: logs[key] for key in sorted(logs) if key != "step"}}
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
