"""A training log in one line for people; metrics.jsonl has all of it."""

import time
from collections.abc import Mapping
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from data.command.terminal import is_terminal, say
from data.command.wording import duration
from trainer.monitor.curves import MARGIN, held_out_values, loss_and_start

TOP1, TAU, SPEED, TOTAL = "rewards/top1", "rewards/kendall_tau", "tokens_per_second", "train_runtime"


def log_line(
    logs: Mapping[str, Any], *, step: int, steps: int, seconds_left: float | None = None, ranking: bool = False
) -> str:
    """A log as people read it, "" of one that holds neither a loss nor the end of a run.

    "step 25/75  loss 2.21 (start 2.48)  margin 1.7  top-1 25%  1,240 tok/s  2 min left"; of held-out groups
    "step 25/75  held-out loss 2.31 (start 2.48)  margin 1.5  top-1 22%"; at the end "step 75/75  done in 3 min".

    Args:
        logs: what transformers logs, values by name.
        step, steps: optimiser steps that are done, and of the whole run.
        seconds_left: until its end; None: not known.
        ranking: whether the objective learns the order of the negatives, so that Kendall's tau says how far it is.
    """
    head = f"step {step:,}/{steps:,}"
    if TOTAL in logs and "loss" not in logs:  # --include_num_input_tokens_seen adds it to every log
        return f"{head}  done in {duration(logs[TOTAL])}"
    held_out = held_out_values(logs)
    values = held_out or logs
    if values.get("loss") is None:
        return ""
    parts = [head, ("held-out " if held_out else "") + _losses(values)]
    if MARGIN in values:
        parts.append(f"margin {short(values[MARGIN], 1)}")
    if TOP1 in values:
        parts.append(f"top-1 {values[TOP1]:.0%}")
    if ranking and TAU in values:
        parts.append(f"tau {short(values[TAU], 2)}")
    if SPEED in values:
        parts.append(f"{values[SPEED]:,.0f} tok/s")
    if seconds_left is not None and not held_out and step < steps:
        parts.append(f"{duration(seconds_left)} left")
    return "  ".join(parts)


def _losses(values: Mapping[str, Any]) -> str:
    """The loss, and beside it, or beside that term of it whose start is known, the start."""
    known = loss_and_start(values)
    if known is None:
        return f"loss {short(values['loss'], 2)}"
    term, start = known
    said = f"{term.partition('/')[2]} {short(values[term], 2)} (start {short(values[start], 2)})"
    return f"loss {said.strip()}" if term == "loss" else f"loss {short(values['loss'], 2)}  {said}"


def short(value: float, digits: int) -> str:
    """A number with so many digits behind the point, a smaller one than they show with its first digit."""
    number = float(value)
    return f"{number:.1g}" if 0 < abs(number) < 0.5 * 10**-digits else f"{number:.{digits}f}"


class LogLines(ProgressCallback):
    """Says each log in a line on stderr, where the log is, in place of transformers' dictionary on stdout.

    Of several processes the first speaks. A bar is there on a terminal alone, as transformers draws it.

    Args:
        ranking: see `log_line`.
        bar: whether a bar may be shown.
    """

    def __init__(self, *, ranking: bool = False, bar: bool = True) -> None:
        super().__init__()
        self.ranking, self.bar = ranking, bar and is_terminal(error=True)
        self._first: tuple[int, float] | None = None  # step and time from which the rest is judged

    @classmethod
    def replace_in(cls, trainer: Any, *, ranking: bool) -> None:
        """Let it speak in a trainer, instead of transformers' own callbacks."""
        for other in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(other)
        trainer.add_callback(cls(ranking=ranking, bar=not trainer.args.disable_tqdm))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Bars of files that are saved would cut ours; those of downloads are over.
        transformers_logging.disable_progress_bar()
        self._first = None
        if self.bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # The first step of a process compiles and fills caches: time is judged by what comes after it.
        self._first = self._first or (state.global_step, time.monotonic())
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if self.bar:
            super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        steps = {"step": state.global_step, "steps": state.max_steps}
        line = log_line(logs or {}, **steps, seconds_left=self._seconds_left(state), ranking=self.ranking)
        if line:
            say(line, error=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def _seconds_left(self, state: TrainerState) -> float | None:
        if self._first is None or state.global_step <= self._first[0]:
            return None
        step, then = self._first
        return (time.monotonic() - then) / (state.global_step - step) * (state.max_steps - state.global_step)
