"""What the trainer trains on: groups from a negative set, or ground truths alone, and their layout in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset

from data.errors import UserError
from data.schema import Group
from data.shards import NegativeSet
from data.strategies import format_counts
from trainer.logprobs import layout
from trainer.objectives import ranks_from_similarity
from trainer.packing import Continuations, TokenBatch


@dataclass(frozen=True)
class TrainingGroup:
    """One group to train on: candidate 0 is the ground truth.

    Attributes:
        tokens: prefix and K continuations.
        reference_logps: K summed log-probabilities in nats under the reference model; empty for mle.
        similarity: K similarities to the ground truth; empty for mle.
    """

    tokens: Continuations
    reference_logps: Sequence[float] = ()
    similarity: Sequence[float] = ()


class GroundTruths(Dataset):
    """Prefixes with their ground truths only (K = 1), for next-token prediction."""

    def __init__(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]):
        self.pairs = pairs

    @classmethod
    def from_groups(cls, groups: Sequence[Group]) -> "GroundTruths":
        return cls([(g.prompt_ids, g.response_ids) for g in groups])

    @classmethod
    def from_negative_set(cls, negatives: NegativeSet, split: str) -> "GroundTruths":
        columns = _rows_of(negatives, split, ["prompt_ids", "response_ids"]).to_pydict()
        return cls(list(zip(columns["prompt_ids"], columns["response_ids"], strict=True)))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> TrainingGroup:
        prompt_ids, response_ids = self.pairs[index]
        return TrainingGroup(Continuations(prompt_ids, [response_ids]))


class ContrastiveGroups(Dataset):
    """Groups of a negative set with a chosen subset of their negatives.

    Args:
        negatives: the set.
        split: "train", "test" or "all": the groups of which half of the data source.
        use: how many negatives of which strategy, the first ones of each; None takes all.
        rank_by: ranking signal; None takes the set's first.

    Raises:
        UserError: the set has not that many negatives of a strategy, or not that signal.
    """

    def __init__(
        self, negatives: NegativeSet, split: str, use: dict[str, int] | None = None, rank_by: str | None = None
    ):
        stored = {name: settings["count"] for name, settings in negatives.manifest.job["strategies"].items()}
        self.use = use or stored
        for strategy, count in self.use.items():
            if count > stored.get(strategy, 0):
                raise UserError(
                    f"--use asks for {strategy}={count}, but negative set '{negatives.folder.path}' holds "
                    f"{format_counts(stored)} per group. Ask for less, or generate a set with more."
                )
        self.signal = rank_by or negatives.signals[0]
        if self.signal not in negatives.signals:
            raise UserError(
                f"--rank_by asks for '{rank_by}', but negative set '{negatives.folder.path}' holds "
                f"{', '.join(negatives.signals)}. Choose one of them, or add it with `python -m negatives_gen extend`."
            )
        columns = ["prompt_ids", "response_ids", "reference_logp", "negatives"]
        self.table: pa.Table = _rows_of(negatives, split, columns).combine_chunks()

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> TrainingGroup:
        row = self.table.slice(index, 1).to_pylist()[0]
        chosen = []
        for strategy, count in self.use.items():
            chosen += [c for c in row["negatives"] if c["strategy"] == strategy][:count]
        return TrainingGroup(
            Continuations(row["prompt_ids"], [row["response_ids"], *(c["ids"] for c in chosen)]),
            [row["reference_logp"], *(c["reference_logp"] for c in chosen)],
            [1.0, *(c["similarity"][self.signal] for c in chosen)],
        )


@dataclass
class PackedGroups:
    """One forward pass: some groups' tokens with what the objective needs beside the policy's log-probabilities.

    Attributes:
        tokens: see `trainer.packing.TokenBatch`; its mask is the mask of the groups, [G, K].
        reference_logps: [G, K] in nats, 0 where there is no candidate. For mle: zeros.
        ranks: [G, K], 0 = best. For mle: zeros.
        num_truth_tokens: tokens of the ground truths.
    """

    tokens: TokenBatch
    reference_logps: torch.Tensor
    ranks: torch.Tensor
    num_truth_tokens: int

    @property
    def num_groups(self) -> int:
        return len(self.reference_logps)

    def to(self, device: Any, **_: Any) -> "PackedGroups":
        """Move to a device (accelerate's loader calls this, with options that do not apply)."""
        return PackedGroups(
            self.tokens.to(device), self.reference_logps.to(device), self.ranks.to(device), self.num_truth_tokens
        )


@dataclass(frozen=True)
class Collator:
    """Lays out a batch of groups as forward passes of at most `row_tokens` tokens each (one large group may exceed).

    Attributes:
        path: "packed" or "padded", what `trainer.logprobs.prepare_model` found.
    """

    path: str
    row_tokens: int

    def __call__(self, groups: Sequence[TrainingGroup]) -> list[PackedGroups]:
        return [
            _with_targets([groups[i] for i in indices], tokens)
            for indices, tokens in layout([g.tokens for g in groups], self.path, self.row_tokens)
        ]


def _rows_of(negatives: NegativeSet, split: str, columns: Sequence[str]) -> pa.Table:
    """Those columns of the groups that belong to a split. Raises UserError if there are none."""
    table = negatives.table([*columns, "split"])
    if split != "all":
        table = table.filter(pc.field("split") == split)
    if not table.num_rows:
        raise UserError(
            f"negative set '{negatives.folder.path}' holds no groups of split '{split}'. Choose another --split; its "
            "rejects.parquet says why rows were rejected."
        )
    return table.drop_columns(["split"])


def _with_targets(groups: Sequence[TrainingGroup], tokens: TokenBatch) -> PackedGroups:
    reference = torch.zeros(tokens.mask.shape)
    similarity = torch.zeros(tokens.mask.shape)
    for row, group in enumerate(groups):
        if group.reference_logps:
            reference[row, : len(group.reference_logps)] = torch.tensor(group.reference_logps)
            similarity[row, : len(group.similarity)] = torch.tensor(group.similarity)
    return PackedGroups(
        tokens=tokens,
        reference_logps=reference,
        ranks=ranks_from_similarity(similarity, tokens.mask),
        num_truth_tokens=sum(len(g.tokens.continuations[0]) for g in groups),
    )
