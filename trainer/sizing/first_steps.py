"""What the first optimiser steps of a run hold: chosen, sampled and laid out as the run does."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from trainer.groups.dataset import Collator, PackedGroups, TrainingGroup
from trainer.groups.sampler import StepSampler
from trainer.monitor.utilisation import ModelFlop

STEPS = 8  # that are looked at


@dataclass(frozen=True)
class FirstSteps:
    """The groups of the first steps.

    Attributes:
        micro_batches: of each step, of all devices and accumulation steps.
        devices: how many share a step.
        steps: of the whole run.
    """

    micro_batches: list[list[list[TrainingGroup]]]
    devices: int
    steps: int

    @classmethod
    def of(cls, dataset: Any, training: TrainingArguments, world: int) -> "FirstSteps":
        """The first steps of a run on so many devices. Raises UserError where the sampler does."""
        sampler = StepSampler.of(dataset, training, world)
        per_epoch = len(sampler) // sampler.step_groups
        steps = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * per_epoch)
        numbers = itertools.islice(sampler, min(STEPS, per_epoch, steps) * sampler.step_groups)
        batches = _chunks([dataset[number] for number in numbers], sampler.step_groups // sampler.micro_batches)
        return cls(_chunks(batches, sampler.micro_batches), world, steps)

    @property
    def groups(self) -> float:
        """Mean number of groups per step."""
        counting = sum(group.counts for step in self.micro_batches for batch in step for group in batch)
        return counting / len(self.micro_batches)

    def laid_out(self, collate: Collator) -> "LaidOut":
        """The forward passes that they take in a layout."""
        passes = [[collate(batch) for batch in step] for step in self.micro_batches]
        return LaidOut(passes, self.devices, collate.layout)


@dataclass(frozen=True)
class LaidOut:
    """The forward passes of the first steps.

    Attributes:
        passes: of each step, of each micro-batch.
        devices: how many share a step.
        layout: "packed" or "padded".
    """

    passes: list[list[list[PackedGroups]]]
    devices: int
    layout: str

    @property
    def largest(self) -> PackedGroups:
        """The pass of the most positions, and among such of the most predicted tokens."""
        return max(self._every(), key=lambda packed: (packed.tokens.input_ids.numel(), len(packed.tokens.target_ids)))

    @property
    def positions(self) -> float:
        """Positions per step, padding included."""
        return self._mean(lambda packed: packed.tokens.input_ids.numel())

    @property
    def padding(self) -> float:
        """Share of the positions that hold no token."""
        return self._mean(lambda packed: packed.tokens.padding) / self.positions

    @property
    def most_passes(self) -> int:
        """Forward passes that a device makes in a step, at most."""
        return max(sum(map(len, step[d :: self.devices])) for step in self.passes for d in range(self.devices))

    def flop(self, model: ModelFlop) -> float:
        """FLOP per step that loss and gradient need, as in the log's `mfu`."""
        return self._mean(lambda packed: model.forward(*_size(packed)) + model.backward(*_size(packed)))

    def computed(self, model: ModelFlop, *, checkpointing: bool, forwards: int) -> float:
        """FLOP per step that are computed, of checkpointing the body's forward pass twice.

        Packed, logits are of predicted tokens and made twice; padded, of every position, padding too, and made once.

        Args:
            forwards: forward passes that are made before each pass.
        """
        padded = self.layout == "padded"

        def all_of(packed: PackedGroups) -> int:
            positions, logits = _size(packed)
            if padded:
                positions = logits = packed.tokens.input_ids.numel()
            once = model.forward(positions, logits)
            again = model.forward(positions if checkpointing else 0, 0 if padded else logits)
            return (forwards + 1) * once + again + model.backward(positions, logits)

        return self._mean(all_of)

    def _every(self) -> list[PackedGroups]:
        return [packed for step in self.passes for batch in step for packed in batch]

    def _mean(self, value: Callable[[PackedGroups], int]) -> float:
        """Per step, of the passes that count."""
        return sum(value(packed) for packed in self._every() if packed.counts) / len(self.passes)


def _size(packed: PackedGroups) -> tuple[int, int]:
    return packed.tokens.input_ids.numel() - packed.tokens.padding, len(packed.tokens.target_ids)


def _chunks(items: Sequence[Any], size: int) -> list[Any]:
    return [items[start : start + size] for start in range(0, len(items), size)]
