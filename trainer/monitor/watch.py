"""What watches a training run, as callbacks that look at its logs: a warning, and training.png."""

import logging
import math
from collections.abc import Sequence
from itertools import combinations, islice
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from data.command.errors import UserError
from data.storage import Folder
from trainer.monitor.curves import CHANGE, HELD_OUT, MARGIN, LogHistory, figure, png
from trainer.objectives.base import Objective

log = logging.getLogger(__name__)

CURVES_FILE = "training.png"

# See `falling_while_growing`.
WINDOW = 30
LEAST = 9
RECENT = 5
SIGNIFICANT = 3.5
MATERIAL = 0.1


class GroundTruthWatch(TrainerCallback, ExportableState):
    """Warns once when the ground truths keep getting less likely while the margin grows.

    It watches the held-out logs once there are enough of them, the train logs until then. That it has warned is kept
    in the checkpoint.

    Args:
        remedies: of the objective, for the warning.
    """

    def __init__(self, remedies: str = Objective.remedies) -> None:
        self.remedies = remedies
        self.warned = False

    def state(self) -> dict[str, Any]:
        return {"args": {"remedies": self.remedies}, "attributes": {"warned": self.warned}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # transformers restores callbacks only where asked to, and then also its own control flags. The default is for
        # checkpoints from before this callback: transformers looks the name up when it saves the next one.
        stored: Any = state.stateful_callbacks
        self.warned = stored.setdefault(type(self).__name__, self.state())["attributes"]["warned"]

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.warned or not state.is_world_process_zero:
            return
        where, (changes, margins) = "held-out", watched(state.log_history, HELD_OUT)
        if len(changes) < LEAST:
            where, (changes, margins) = "train", watched(state.log_history, "")
        if not falling_while_growing(changes, margins):
            return
        self.warned = True
        log.warning(
            "By step %d the %s ground truths have become less likely than under the reference (%+.2f nats, and falling "
            "over the last %d logs) while the margin grows (now %.2f). To keep them likely try %s, or an ensemble with "
            "the MLE model: python -m trainer.ensemble.",
            state.global_step,
            where,
            mean(changes[-RECENT:]),
            len(changes),
            mean(margins[-RECENT:]),
            self.remedies,
        )


def watched(log_history: LogHistory, prefix: str) -> tuple[list[float], list[float]]:
    """The last changes and margins, at most a window of them, of the logs in which both are finite numbers."""
    pairs = ([logs.get(prefix + key, math.nan) for key in (CHANGE, MARGIN)] for logs in reversed(log_history))
    last = [*islice((pair for pair in pairs if all(map(math.isfinite, pair))), WINDOW)][::-1]
    return [change for change, _ in last], [margin for _, margin in last]


def falling_while_growing(changes: Sequence[float], margins: Sequence[float]) -> bool:
    """Whether the ground truth's log-probability keeps falling below the reference's while the margin grows.

    A contrastive loss sees only the difference: its gradient ties chosen and rejected together, and may lower both as
    long as the rejected fall faster (gradient entanglement, arXiv 2410.13828; likelihood displacement, arXiv
    2410.08847; DPOP, arXiv 2402.13228, which penalises just this fall). Those papers name the sign, not thresholds;
    ours:

    - Over the last 30 logs, from the 9th on, changes fall and margins rise by Mann and Kendall's trend test with
      |z| > 3.5. It counts pairs in order, so that one outlier weighs little, and noise in proportion to the change,
      as here (both are 0 at the start), does no harm. Fewer than 9 values cannot reach 3.5.
    - The mean change of the last 5 logs is below -0.1 nats: the ground truth has lost a tenth of its probability. The
      first steps have next to no noise, and a fall of a thousandth would be significant.

    By simulation (2,000 series of 50 logs, normal noise, judged after each log, the margin growing all along): flat
    changes raise it in 0.4 % of the series; a fall of one standard deviation of the noise per 5 logs in all of them,
    by the 20th log in half, by the 31st at the latest.

    Args:
        changes: log-probability of the ground truth, policy minus reference, nats; one per log.
        margins: one per log, same length.
    """
    return (
        mean(changes[-RECENT:]) < -MATERIAL
        and trend(changes[-WINDOW:]) < -SIGNIFICANT
        and trend(margins[-WINDOW:]) > SIGNIFICANT
    )


def trend(values: Sequence[float]) -> float:
    """Mann and Kendall's z, continuity corrected: about standard normal without a trend, negative for a fall."""
    n = len(values)
    rises = sum((b > a) - (b < a) for a, b in combinations(values, 2))
    spread = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    return (rises - (rises > 0) + (rises < 0)) / spread if rises else 0.0


def mean(values: Sequence[float]) -> float:
    """The mean of some values; 0 if there are none."""
    return sum(values) / len(values) if values else 0.0


class Curves(TrainerCallback):
    """Draws OUTPUT_DIR/training.png from the logs so far, at each checkpoint and at the end."""

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
        try:
            Folder(str(args.output_dir)).write(CURVES_FILE, png(figure(state.log_history)))
        except UserError as error:  # the model is saved after this
            log.warning("%s is not drawn: %s", CURVES_FILE, error)
