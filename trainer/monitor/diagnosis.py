"""What a run is told about itself, a line each and once: a too large step, held-out groups that are lost, decided
negatives, falling ground truths.

A callback that looks at the logs. docs/logs.md says what each logged name means, docs/training.md what to do.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from trainer.monitor.curves import (
    CHANGE,
    DECIDED,
    HELD_OUT,
    MARGIN,
    OVER_START,
    REPEATS,
    SPREAD,
    LogHistory,
    held_out_values,
    loss_and_start,
)
from trainer.monitor.stretches import FEWEST_OF_LOSS
from trainer.objectives.base import Objective
from trainer.objectives.rewards import SURE

log = logging.getLogger(__name__)

BEFORE = "GroundTruthWatch"  # what checkpoints of before 0.7 call it, of which there was one line

# See `above_start` and `mostly_decided`.
TOO_LARGE = 1.5
FAR_TOO_LARGE = 3.0
BLOWN_UP = 10.0  # a warm-up is not enough, see docs/training.md, "Too large steps, measured"
FEWEST_OF_FAR = 16
MOSTLY = 0.9
FEWEST_OF_SHARE = 256

# See `fallen` and `held_out_above_start`.
SQUARE = f"{CHANGE}_square"
FEWEST_OF_CHANGE = 256
FEWEST_HELD_OUT = 64
MATERIAL = 0.2
SIGNIFICANT = 4.0


class Diagnosis(TrainerCallback, ExportableState):
    """Says in a line, once, what the logs show to go wrong, as soon as they do.

    Which lines were said is kept in the checkpoint.

    Args:
        remedies: of the objective, against falling ground truths.
        beta: what the objective multiplies log-ratios with.
        done_when_decided: of the objective.
        held_out: number of held-out groups that are watched.
    """

    def __init__(
        self,
        remedies: str = Objective.remedies,
        beta: float = 1.0,
        done_when_decided: bool = Objective.done_when_decided,
        held_out: int = 0,
    ) -> None:
        self.remedies, self.beta, self.done_when_decided = remedies, beta, done_when_decided
        self.held_out = held_out
        self.said: list[str] = []

    @classmethod
    def of(cls, objective: Objective, options: Any, held_out: int = 0) -> "Diagnosis":
        """The diagnosis of runs of an objective with an instance of its `Options`."""
        return cls(objective.remedies, objective.beta(options), objective.done_when_decided, held_out)

    def state(self) -> dict[str, Any]:
        names = "remedies", "beta", "done_when_decided", "held_out"
        args = {name: getattr(self, name) for name in names}
        return {"args": args, "attributes": {"said": list(self.said)}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # transformers restores callbacks only where asked to, and then also its own control flags. The default is for
        # checkpoints from before this callback: transformers looks the name up when it saves the next one.
        stored: Any = state.stateful_callbacks
        older = stored.pop(BEFORE, {"attributes": {"warned": False}})
        self.said = list(stored.setdefault(type(self).__name__, self.state())["attributes"]["said"])
        if older["attributes"]["warned"]:
            self.said.append("falling")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        findings = {"step": self._step, "held-out": self._held_out, "decided": self._decided, "falling": self._falling}
        for name, find in findings.items():
            line = "" if name in self.said else find(args, state.log_history)
            if line:
                self.said.append(name)
                log.warning("By step %d %s", state.global_step, line)

    def _step(self, args: TrainingArguments, history: LogHistory) -> str:
        found = above_start(history, _batch(args))
        if found is None:
            return ""
        moved = (
            "" if found.moved is None else f": at beta {self.beta:g} a step moves h apart by up to {found.moved:.2g}"
        )
        remedy = f"a tenth of --learning_rate (now {args.learning_rate:g}), or less"
        if found.loss < BLOWN_UP * found.start:
            remedy = (
                f"a smaller --learning_rate (now {args.learning_rate:g}), a warm-up (--warmup_steps, now "
                f"{args.warmup_steps:g}), or a smaller --beta"
            )
        return (
            f"the loss has been {found.loss:.2f}, {found.loss / found.start:.1f} times its start of {found.start:.2f}: "
            f"the step is too large{moved}. Try {remedy}."
        )

    def _held_out(self, args: TrainingArguments, history: LogHistory) -> str:
        found, train = held_out_above_start(history, self.held_out), _of_start(history, _batch(args))
        if found is None or train is None or train > TOO_LARGE:
            return ""
        return (
            f"the last held-out loss is {found.loss:.2f}, {found.loss / found.start:.1f} times its start of "
            f"{found.start:.2f}, that of the train groups {train:.1f} times its own: what was learned of these is "
            f"wrong of others. Try fewer steps (--early_stopping_patience 3 stops by itself), a smaller "
            f"--learning_rate (now {args.learning_rate:g}), or more data."
        )

    def _decided(self, args: TrainingArguments, history: LogHistory) -> str:
        share = mostly_decided(history, _batch(args)) if self.done_when_decided else None
        if share is None:
            return ""
        repeats, held_out = _last(history, REPEATS), _last(history, HELD_OUT + DECIDED)
        known = "" if repeats is None or repeats < 1 else f", or known by heart (shown {repeats:.1f} times so far)"
        others = "" if held_out is None else f"; of the held-out groups {held_out:.0%} are decided"
        return (
            f"the train groups are decided (in {share:.0%} the softmax gives the ground truth more than {SURE}): their "
            f"negatives are too easy{known}, and teach next to nothing more{others}. Try harder ones (--use "
            "an=4:hard), a larger pool (--use an=4:random), negatives of the model as it is now, fewer steps, or a "
            "smaller --beta."
        )

    def _falling(self, args: TrainingArguments, history: LogHistory) -> str:
        found = fallen(history, _batch(args), self.held_out)
        if found is None:
            return ""
        return (
            f"the {found.where} ground truths have become less likely than under the reference ({found.change:+.2f} "
            f"± {found.error:.2f} nats, over {found.groups} groups) while the margin grew to {found.margin:.2f}. To "
            f"keep them likely try {self.remedies}, or an ensemble with the MLE model: python -m trainer.ensemble."
        )


@dataclass(frozen=True)
class TrainLog:
    """A log of train groups.

    Attributes:
        logs: the log itself.
        groups: how many it is a mean over.
        updates: optimiser steps that were made before a group of it was seen, on average.
    """

    logs: Mapping[str, Any]
    groups: int
    updates: float


@dataclass(frozen=True)
class AboveStart:
    """A loss that is above its start.

    Attributes:
        loss, start: in nats.
        moved: see `moved_apart`.
    """

    loss: float
    start: float
    moved: float | None


@dataclass(frozen=True)
class Fallen:
    """Ground truths that are less likely than under the reference.

    Attributes:
        where: which, "train" or "held-out".
        change: their log-probability, policy minus reference, mean over groups, nats.
        error: its standard error.
        groups: how many they are.
        margin: their mean margin.
    """

    where: str
    change: float
    error: float
    groups: int
    margin: float


def above_start(history: LogHistory, batch: int) -> AboveStart | None:
    """The loss, where it is above 1.5 times what it was while the policy was the reference; else None.

    It is that of the last train logs that hold at least 128 groups together, or of as many groups that followed each
    other within the last log (`trainer.monitor.stretches`): of fewer it is mostly noise. By simulation (1,000 series of
    50 logs of 128 groups, K = 12, h normal, judged after each log) a loss whose mean is 1.25 times its start raises the
    line in none of the series, 1.33 times in 1.4 %, 1.37 times in 36 %, 1.42 times in 98 %; one of 1.6 times in all, at
    the first or second log. A run that has not seen 128 groups yet is judged by its last 16 or more, and by 3 times its
    start: of 2,000 series of 7 logs of 16 groups a mean of 1.36 or 1.61 times raises the line in none, 1.87 times in
    0.2 %, 2.8 times in 92 %, 4 times in all.

    Args:
        batch: groups per optimiser step.
    """
    last, bar = latest(train_logs(history, batch), FEWEST_OF_LOSS), TOO_LARGE
    if not last:
        last, bar = latest(train_logs(history, batch), FEWEST_OF_FAR), FAR_TOO_LARGE
    found = _loss_and_start(last)
    if found is None:
        return None
    loss, start = found
    highest = last[0].logs.get(OVER_START, 0.0)
    if highest > max(TOO_LARGE, loss / start):
        loss, bar = highest * start, TOO_LARGE
    return AboveStart(loss, start, moved_apart([*train_logs(history, batch)][::-1])) if loss > bar * start else None


def _of_start(history: LogHistory, batch: int) -> float | None:
    """The train loss over its start, of the last logs that hold 128 groups, or of all; None where it is not known."""
    found = _loss_and_start(latest(train_logs(history, batch), FEWEST_OF_LOSS) or [*train_logs(history, batch)])
    return found and found[0] / found[1]


def _loss_and_start(logs: Sequence[TrainLog]) -> tuple[float, float] | None:
    """The mean loss of these logs, the newest first, and its start; None where that is not known.

    Nor where it is 0, of which no multiple says anything.
    """
    keys = loss_and_start(logs[0].logs) if logs else None
    if keys is None:
        return None
    loss, start = (average(logs, key) for key in keys)
    return (loss, start) if start > 0 else None


def held_out_above_start(history: LogHistory, held_out: int) -> AboveStart | None:
    """The held-out loss of the last evaluation of at least 64 groups, where it is above 1.5 times its start; else None.

    Args:
        held_out: groups of an evaluation.
    """
    values = next(filter(None, map(held_out_values, reversed(history))), {})
    keys = loss_and_start(values)
    if keys is None or held_out < FEWEST_HELD_OUT:
        return None
    loss, start = (values[key] for key in keys)
    return AboveStart(loss, start, None) if loss > TOO_LARGE * start > 0 else None


def moved_apart(logs: Sequence[TrainLog]) -> float | None:
    """By how much a step moved the h of a group's candidates apart: the growth of their standard deviation.

    The fastest of a run so far, from one stretch of 128 groups to the next, the first from the start; None where it
    is not logged.

    Args:
        logs: all, the oldest first.
    """
    points, stretch = [(0.0, 0.0)], []
    for one in logs:
        stretch.append(one)
        if SPREAD in one.logs and sum(other.groups for other in stretch) >= FEWEST_OF_LOSS:
            points.append((_updates(stretch), average(stretch, SPREAD)))
            stretch = []
    return max(((b - a) / (v - u) for (u, a), (v, b) in pairwise(points) if v > u), default=None)


def mostly_decided(history: LogHistory, batch: int) -> float | None:
    """The share of decided train groups, where it is above 0.9 in the last logs that hold at least 256; else None.

    By simulation (20,000 series of 50 logs of 256 groups, judged after each log) a share of 0.8 raises the line in
    0.03 % of the series, one of 0.85 in a third, one of 0.9 in all.

    Args:
        batch: groups per optimiser step.
    """
    last = latest(train_logs(history, batch), FEWEST_OF_SHARE)
    if not last or DECIDED not in last[0].logs:
        return None
    share = average(last, DECIDED)
    return share if share > MOSTLY else None


def fallen(history: LogHistory, batch: int, held_out: int) -> Fallen | None:
    """What is known of ground truths that fell while the margin grew, held-out ones first; None where they did not.

    A contrastive loss sees only the difference: its gradient ties chosen and rejected together, and may lower both as
    long as the rejected fall faster (gradient entanglement, arXiv 2410.13828; likelihood displacement, arXiv
    2410.08847; DPOP, arXiv 2402.13228, which penalises just this fall). Those papers name the sign, not thresholds;
    ours, of the last train logs that hold at least 256 groups, or of one evaluation of at least 64:

    - The mean change is below -0.2 nats. Of 79 real runs (the quickstart's, the study's of facts and stories, those of
      docs/training.md before; 40 steps or more) those that came back to 0 by themselves had dipped to at most -0.16
      over so many groups (the quickstart's cpo, by step 20); of those that passed -0.2 none came back.
    - It is more than 4 standard errors below 0. Sets hold each group once an epoch, so that repeats make a mean surer
      than this says.
    - The margin is above 0: where it is not, the loss is above its start and says what is wrong.

    By simulation (4,000 series of 50 logs of 256 groups, standard deviation 1, judged after each log) truths that do
    not fall raise it in 0.2 % of the series if changes are normal, in 0.03 % with a skewness of -1.2; those of the
    quickstart have standard deviations of 0.3 to 1.6 and skewnesses of -0.6 to -1.5. A mean of -0.35 is found by the
    first log in 94 %.

    Args:
        batch: groups per optimiser step.
        held_out: groups of an evaluation.
    """
    evaluation = next((logs for logs in reversed(history) if HELD_OUT + SQUARE in logs), None)
    if evaluation is not None and held_out >= FEWEST_HELD_OUT:
        change, square, margin = (evaluation.get(HELD_OUT + key, math.nan) for key in (CHANGE, SQUARE, MARGIN))
        found = Fallen("held-out", change, standard_error(change, square, held_out), held_out, margin)
        if _is_fall(found):
            return found
    last = latest(train_logs(history, batch), FEWEST_OF_CHANGE)
    if not last or not all(SQUARE in one.logs for one in last):
        return None
    groups = sum(one.groups for one in last)
    change, square, margin = (average(last, key) for key in (CHANGE, SQUARE, MARGIN))
    found = Fallen("train", change, standard_error(change, square, groups), groups, margin)
    return found if _is_fall(found) else None


def standard_error(mean: float, mean_square: float, number: int) -> float:
    """The standard error of a mean of so many independent values, from the mean of their squares."""
    return math.sqrt(max(mean_square - mean**2, 0.0) / max(number - 1, 1))


def _is_fall(found: Fallen) -> bool:
    return found.change < -MATERIAL and found.change < -SIGNIFICANT * found.error and found.margin > 0


def train_logs(history: LogHistory, batch: int) -> Iterator[TrainLog]:
    """The logs of train groups, the newest first.

    Args:
        batch: groups per optimiser step.
    """
    newer = None
    for logs in chain((logs for logs in reversed(history) if "loss" in logs), [{"step": 0}]):
        if newer is not None and newer["step"] > logs["step"]:
            steps = newer["step"] - logs["step"]
            yield TrainLog(newer, steps * batch, logs["step"] + (steps - 1) / 2)
        newer = logs


def latest(logs: Iterator[TrainLog], fewest: int) -> list[TrainLog]:
    """The first of these logs until they hold so many groups; none if they never do. Takes no more of them."""
    taken: list[TrainLog] = []
    for one in logs:
        taken.append(one)
        if sum(other.groups for other in taken) >= fewest:
            return taken
    return []


def average(logs: Sequence[TrainLog], key: str) -> float:
    """The mean of a logged value over all groups; 0, as while the policy is the reference, of no logs."""
    groups = sum(one.groups for one in logs)
    return sum(one.logs.get(key, 0.0) * one.groups for one in logs) / groups if groups else 0.0


def _updates(logs: Sequence[TrainLog]) -> float:
    groups = sum(one.groups for one in logs)
    return sum(one.updates * one.groups for one in logs) / groups if groups else 0.0


def _batch(args: TrainingArguments) -> int:
    """Groups, or pairs, per optimiser step."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def _last(history: LogHistory, key: str) -> float | None:
    """The last value that was logged under a name."""
    return next((logs[key] for logs in reversed(history) if logs.get(key) is not None), None)
