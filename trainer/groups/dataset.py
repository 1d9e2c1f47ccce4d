"""What the trainer trains on: groups from negative sets, or ground truths alone, and their layout in batches."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from data.command.errors import UserError
from data.ranks import known_ranks
from data.schema import Group
from data.shards import NegativeSet
from trainer.groups.choice import Choice
from trainer.groups.store import GroupStore, Shard
from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import TokenBatch, lay_out

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingGroup:
    """One group to train on: candidate 0 is the ground truth.

    Attributes:
        id: of the group in its set.
        tokens: prefix and K continuations.
        reference_logps: K summed log-probabilities in nats under the reference model; empty for ground truths alone.
        similarity: K similarities to the ground truth, nan where the signal has none; empty for ground truths alone.
        strategies: K - 1 names, of the negatives.
        counts: False where it only fills the last step of an epoch.
    """

    id: str
    tokens: Continuations
    reference_logps: Sequence[float] = ()
    similarity: Sequence[float] = ()
    strategies: Sequence[str] = ()
    counts: bool = True


class GroundTruths(Dataset):
    """Prefixes with their ground truths only (K = 1), held in memory, for next-token prediction.

    Attributes:
        strategies: of negatives, of which there are none.
        shown_per_epoch: how often an epoch shows a negative, of which there are none.
    """

    strategies: Sequence[str] = ()
    shown_per_epoch: float | None = None

    def __init__(self, groups: Sequence[Group]):
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> TrainingGroup:
        if number < 0:
            return replace(self[~number], counts=False)
        group = self.groups[number % len(self)]
        return TrainingGroup(group.id, Continuations(group.prompt_ids, [group.response_ids]))

    @property
    def blocks(self) -> list[np.ndarray]:
        return [np.arange(len(self))]

    def tokens(self, block: np.ndarray) -> np.ndarray:
        return np.array([len(self.groups[i].prompt_ids) + len(self.groups[i].response_ids) for i in block], dtype=float)

    def keep(self, groups: int) -> None:
        """Keep so many groups at hand: all are in memory, so there is nothing to do."""


class ContrastiveGroups(Dataset):
    """Groups of negative sets with a chosen subset of their negatives; without a choice, ground truths alone.

    Number i + n * len is group i in epoch n, which matters where the choice draws afresh each epoch. Number ~i is group
    i that does not count, see `trainer.groups.sampler`.

    Args:
        store: the groups.
        choice: which negatives. Groups of which its bounds leave no negative are dropped; the log counts them.
    """

    def __init__(self, store: GroupStore, choice: Choice | None = None):
        self.store = store
        self.choice = choice
        if choice is not None and choice.filters:
            self._drop_empty(choice)

    @classmethod
    def of(
        cls,
        sets: Sequence[NegativeSet],
        split: str,
        use: str | None = None,
        rank_by: str | None = None,
        **options: Any,
    ) -> "ContrastiveGroups":
        """The groups of a split of some sets, with the negatives that `trainer.groups.choice.Choice.of` names."""
        return cls(GroupStore(sets, split), Choice.of(sets, use, rank_by, **options))

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, number: int) -> TrainingGroup:
        if number < 0:
            return replace(self[~number], counts=False)
        epoch, number = divmod(number, len(self))
        shard, row = self.store.locate(number)
        prefix, truth = shard.prompts[row], shard.responses[row]
        if self.choice is None:
            return TrainingGroup(shard.ids[row], Continuations(prefix, [truth]))
        places, strategies = self.choice.negatives(shard, row, number, epoch)
        return TrainingGroup(
            shard.ids[row],
            Continuations(prefix, [truth, *(shard.negatives[place] for place in places)]),
            [shard.reference_logps[row], *shard.negative_logps[places]],
            [1.0, *shard.similarity[self.choice.signal][places]],
            strategies,
        )

    @property
    def blocks(self) -> list[np.ndarray]:
        return self.store.blocks

    def tokens(self, block: np.ndarray) -> np.ndarray:
        """Tokens that each group of a block takes in a packed row."""
        shard = self.store.block_of(block)
        tokens = shard.prompts.lengths - 1 + shard.responses.lengths.astype(float)
        return tokens if self.choice is None else tokens + self.choice.counted(shard)

    def keep(self, groups: int) -> None:
        self.store.keep(groups)

    @property
    def strategies(self) -> list[str]:
        """Names of the strategies of the negatives."""
        return list(self.choice.counts) if self.choice else []

    @property
    def scored(self) -> list[tuple[str, str]]:
        """In which (dtype, layout) the reference scored the groups; empty for ground truths alone."""
        manifests = [negatives.manifest for negatives in self.store.sets] if self.choice else []
        return sorted({(m.job["model"]["scorer_dtype"], shard.layout) for m in manifests for shard in m.shards})

    @property
    def shown_per_epoch(self) -> float | None:
        """How often an epoch shows each negative that may be shown at all; None for ground truths alone."""
        return self.choice.shown_per_epoch if self.choice else None

    def _drop_empty(self, choice: Choice) -> None:
        everything = replace(choice, min_similarity=None, max_similarity=None)
        passed_over = total = 0

        def has_negatives(shard: Shard) -> np.ndarray:
            nonlocal passed_over, total
            owner = np.repeat(np.arange(len(shard.ids)), np.diff(shard.first))
            before, after = (
                np.bincount(owner[c.allowed(shard)], minlength=len(shard.ids)) for c in (everything, choice)
            )
            total += int(before.sum())
            passed_over += int((before - after).sum())
            return after > 0

        groups = len(self.store)
        dropped = self.store.drop(has_negatives)
        bounds = [f"--{k} {v}" for k in ("min_similarity", "max_similarity") if (v := getattr(choice, k)) is not None]
        found = (
            f"split '{self.store.split}': {' and '.join(bounds)} ({choice.signal}) passes over {passed_over} of "
            f"{total} negatives and leaves {dropped} of {groups} groups without any"
        )
        if dropped == groups:
            raise UserError(f"{found}. Choose wider bounds; `python -m negatives_gen stats` shows the similarities.")
        log.info("%s", found)


@dataclass
class PackedGroups:
    """One forward pass: some groups' tokens with what the objective needs beside the policy's log-probabilities.

    Attributes:
        ids: G ids of the groups.
        sequences: G prefixes with their continuations, which `tokens` lays out.
        tokens: see `trainer.scoring.packing.TokenBatch`; its mask is the mask of the groups, [G, K].
        reference_logps: [G, K] in nats, 0 where there is no candidate. Of ground truths alone: zeros.
        ranks: [G, K], 0 = best, `data.ranks.UNRANKED` where the signal has no value. Of ground truths alone: zeros.
        strategies: names of the strategies of the negatives.
        strategy: [G, K], which of them made each negative, -1 for the ground truth.
        num_truth_tokens: tokens of the ground truths.
        counts: False for a pass that is made only because other processes make one.
    """

    ids: list[str]
    sequences: Sequence[Continuations]
    tokens: TokenBatch
    reference_logps: torch.Tensor
    ranks: torch.Tensor
    strategy: torch.Tensor
    num_truth_tokens: int
    strategies: Sequence[str] = ()
    counts: bool = True

    @property
    def num_groups(self) -> int:
        return len(self.ids)

    def to(self, device: Any, **_: Any) -> "PackedGroups":
        """Move to a device (accelerate's loader calls this, with options that do not apply)."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            reference_logps=self.reference_logps.to(device),
            ranks=self.ranks.to(device),
            strategy=self.strategy.to(device),
        )


@dataclass(frozen=True)
class Collator:
    """Lays out a batch of groups as forward passes of at most `row_tokens` tokens each (one large group may exceed).

    Groups that do not count are left out; of a batch that has no other, one makes a pass that does not count.

    Attributes:
        layout: "packed" or "padded", what `trainer.scoring.prepared_model.prepare_model` found.
        strategies: names, numbered for `PackedGroups.strategy`.
        copies: how often each ground truth is laid out.
    """

    layout: str
    row_tokens: int
    strategies: Sequence[str] = ()
    copies: int = 1

    def __call__(self, groups: Sequence[TrainingGroup]) -> list[PackedGroups]:
        groups = [group for group in groups if group.counts] or groups[:1]
        sequences = [group.tokens for group in groups]
        if self.copies > 1:
            sequences = [Continuations(s.prefix, list(s.continuations) * self.copies) for s in sequences]
        return [
            _with_targets([groups[i] for i in indices], [sequences[i] for i in indices], tokens, self.strategies)
            for indices, tokens in lay_out(sequences, self.layout, self.row_tokens)
        ]


def _with_targets(
    groups: Sequence[TrainingGroup], sequences: Sequence[Continuations], tokens: TokenBatch, names: Sequence[str]
) -> PackedGroups:
    shape = tuple(tokens.mask.shape)
    reference, similarity = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    strategy = np.full(shape, -1, dtype=np.int64)
    for row, group in enumerate(groups):
        if len(group.reference_logps):
            reference[row, : len(group.reference_logps)] = group.reference_logps
            similarity[row, : len(group.similarity)] = group.similarity
            made_by = [names.index(name) if name in names else -1 for name in group.strategies]
            strategy[row, 1 : 1 + len(made_by)] = made_by
    return PackedGroups(
        ids=[group.id for group in groups],
        sequences=sequences,
        tokens=tokens,
        reference_logps=torch.from_numpy(reference),
        ranks=torch.from_numpy(known_ranks(similarity, tokens.mask.numpy())),
        strategy=torch.from_numpy(strategy),
        num_truth_tokens=sum(len(g.tokens.continuations[0]) for g in groups),
        strategies=names,
        counts=groups[0].counts,
    )
