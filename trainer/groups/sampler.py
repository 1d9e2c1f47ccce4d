"""The order of an epoch: optimiser steps that hold the same number of groups and nearly the same number of tokens."""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.command.errors import UserError

# Steps' worth of groups that are mixed at a time: enough for strata of different lengths, few enough to keep decoded.
WINDOW_STEPS = 32


class Blocks(Protocol):
    """A data set whose groups lie in blocks that are read together; number ~n is group n, not to count."""

    def __len__(self) -> int: ...

    @property
    def blocks(self) -> list[np.ndarray]:
        """Numbers of the groups of each block."""
        ...

    def tokens(self, block: np.ndarray) -> np.ndarray:
        """Tokens of each group of a block, about."""
        ...

    def keep(self, groups: int) -> None:
        """Keep so many groups at hand, and three of the largest blocks."""
        ...


def data_seed(args: TrainingArguments) -> int:
    """The seed of what is drawn of the data: the order of groups, random choices of negatives."""
    return args.seed if args.data_seed is None else args.data_seed


class StepSampler(Sampler[int]):
    """Every group once an epoch, in stretches of `step_groups` that are one optimiser step each.

    Blocks come in random order. Of each window of groups the sampler makes steps that are stratified by length: the
    groups are sorted by tokens into `step_groups` strata, and a step takes one of each. So gradients are no noisier
    than with plain shuffling, and steps take about the same time. Within a step, micro-batches are balanced as well.
    Groups that make no whole step wait for the next window; they are of the block read last, so that a window needs no
    other block of the one before.

    What a step holds depends on seed, epoch and `step_groups` only, not on the number of its micro-batches. The numbers
    are given as number + epoch * len(dataset): a data set that draws its negatives knows the epoch from them, in the
    data loader's workers too.

    The last step of an epoch has the groups that are left, dealt evenly to its micro-batches. The places of the others
    are filled with ~number, a group that does not count: so every step has as many numbers, and neither torch's loader
    nor accelerate's has a ragged end to fill up with groups of its own choice, or a process without a batch.

    Args:
        dataset: blocks of groups.
        step_groups: groups per optimiser step, over all processes.
        micro_batches: parts of a step: processes x accumulation steps.
        seed: of the order.
        drop_last: leave out the last step if it would have fewer groups.

    Raises:
        UserError: `drop_last` leaves out everything.
    """

    def __init__(
        self, dataset: Blocks, step_groups: int, micro_batches: int = 1, seed: int = 0, drop_last: bool = False
    ):
        if step_groups % micro_batches:
            raise ValueError(f"{step_groups} groups cannot be divided into {micro_batches} equal micro-batches")
        if drop_last and len(dataset) < step_groups:
            raise UserError(
                f"--dataloader_drop_last true leaves none of the {len(dataset)} groups: a step takes {step_groups}. "
                "Set it to false, or choose a smaller --per_device_train_batch_size."
            )
        self.dataset = dataset
        self.step_groups = step_groups
        self.micro_batches = micro_batches
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        # A block that waits may be used again after all others of two windows, each of which ends with a whole block,
        # and the block that waited before it.
        dataset.keep((2 * WINDOW_STEPS + 1) * step_groups)

    @classmethod
    def of(cls, dataset: Blocks, args: TrainingArguments, processes: int) -> "StepSampler":
        """The sampler of a run on so many processes. Raises UserError where `drop_last` leaves out everything."""
        micro_batches = args.gradient_accumulation_steps * processes
        step_groups = args.train_batch_size * micro_batches
        return cls(dataset, step_groups, micro_batches, data_seed(args), args.dataloader_drop_last)

    def __len__(self) -> int:
        groups, step = len(self.dataset), self.step_groups
        return (groups // step if self.drop_last else math.ceil(groups / step)) * step

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng((self.seed, self.epoch))
        offset = self.epoch * len(self.dataset)
        for step in self._steps(draw):
            yield from np.where(step < 0, step - offset, step + offset).tolist()

    def _steps(self, draw: np.random.Generator) -> Iterator[np.ndarray]:
        blocks = self.dataset.blocks
        numbers, tokens, came = np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=np.int64)
        for count, place in enumerate(draw.permutation(len(blocks)), start=1):
            block = blocks[place]
            numbers = np.concatenate([numbers, block])
            tokens = np.concatenate([tokens, self.dataset.tokens(block)])
            came = np.concatenate([came, np.full(len(block), count)])
            if len(numbers) < WINDOW_STEPS * self.step_groups and count < len(blocks):
                continue
            order = draw.permutation(len(numbers))
            if count < len(blocks):
                order = order[np.argsort(came[order], kind="stable")]
            numbers, tokens, came = numbers[order], tokens[order], came[order]
            whole = len(numbers) // self.step_groups * self.step_groups
            for step in self._stratified(tokens[:whole], draw):
                yield numbers[step]
            numbers, tokens, came = numbers[whole:], tokens[whole:], came[whole:]
        if len(numbers) and not self.drop_last:
            yield self._filled(numbers)

    def _filled(self, rest: np.ndarray) -> np.ndarray:
        """[step_groups]: the rest of the epoch, dealt out to the micro-batches, and a group that does not count."""
        places = np.full(self.step_groups, ~rest[0])
        places[: len(rest)] = rest
        return places.reshape(-1, self.micro_batches).T.flatten()

    def _stratified(self, tokens: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """[steps, step_groups], places in `tokens`: each step has one of every stratum of lengths."""
        if not len(tokens):
            return np.zeros((0, self.step_groups), dtype=np.int64)
        strata = np.argsort(tokens, kind="stable").reshape(self.step_groups, -1)
        steps = draw.permuted(strata, axis=1).T
        # Dealt out like cards, there and back, from the longest: micro-batches get about the same number of tokens.
        parts = self.micro_batches
        dealt = steps[:, ::-1].reshape(len(steps), -1, parts)
        dealt[:, 1::2] = dealt[:, 1::2, ::-1].copy()
        return dealt.transpose(0, 2, 1).reshape(len(steps), self.step_groups)


class EpochOfSampler(TrainerCallback):
    """Tells the sampler of the training data which epoch begins, however the data loader wraps it.

    transformers and accelerate descend two levels. On several processes a loader that skips what was trained before a
    resume has three, and its sampler would stay in epoch 0.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        sampler = kwargs["train_dataloader"].batch_sampler
        while (inner := getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)) is not None:
            sampler = inner
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(int(state.epoch or 0))
