"""Groups of one or more negative sets by number, read shard by shard when they are needed.

Opening reads the manifests, and the `split` column only where a set holds both halves. The groups of the split in a
shard are decoded into flat arrays when one of them is asked for, its checksum verified the first time, and dropped when
others were needed since. Memory does not grow with the number of groups: see `GroupStore.keep`.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data.command.errors import UserError
from data.command.wording import counted
from data.reach import FEW, why_unknown
from data.shards import NegativeSet

log = logging.getLogger(__name__)

COLUMNS = (
    *("id", "prompt_ids", "response_ids", "reference_logp"),
    *(f"negatives.list.element.{name}" for name in ("strategy", "ids", "reference_logp", "similarity")),
)
# Decoded groups kept where nobody asks for more. A group of 12 continuations of 100 tokens takes 5 KB.
KEPT_GROUPS = 4096
ANOTHER_SPLIT = "Choose another --split; its rejects.parquet says why rows were rejected."


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, column: Any) -> "Ragged":
        """The rows of an Arrow list array."""
        offsets = column.offsets.to_numpy()
        return cls(column.values.to_numpy(zero_copy_only=False), offsets)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Shard:
    """The groups of one shard that count, as arrays: R groups, C negatives of all of them together.

    Attributes:
        ids: [R], id of each group.
        prompts, responses: R token sequences.
        reference_logps: [R], of the ground truths, nats.
        first: [R + 1]; the negatives of group r are first[r]:first[r + 1].
        strategies: names of the strategies;  strategy: [C], which of them made each negative.
        negatives: C token sequences.
        negative_logps: [C], nats.
        similarity: signal -> [C].
    """

    ids: np.ndarray
    prompts: Ragged
    responses: Ragged
    reference_logps: np.ndarray
    first: np.ndarray
    strategies: list[str]
    strategy: np.ndarray
    negatives: Ragged
    negative_logps: np.ndarray
    similarity: dict[str, np.ndarray]

    @classmethod
    def of(cls, table: pa.Table) -> "Shard":
        columns = {name: _one(table.column(name)) for name in table.column_names}
        candidates: Any = columns["negatives"].values
        field = {candidates.type[i].name: candidates.field(i) for i in range(candidates.type.num_fields)}
        similarity, strategy = field["similarity"], field["strategy"].dictionary_encode()
        return cls(
            ids=columns["id"].to_numpy(zero_copy_only=False),
            prompts=Ragged.of(columns["prompt_ids"]),
            responses=Ragged.of(columns["response_ids"]),
            reference_logps=columns["reference_logp"].to_numpy(zero_copy_only=False),
            first=columns["negatives"].offsets.to_numpy(),
            strategies=strategy.dictionary.to_pylist(),
            strategy=strategy.indices.to_numpy(),
            negatives=Ragged.of(field["ids"]),
            negative_logps=field["reference_logp"].to_numpy(zero_copy_only=False),
            similarity={
                similarity.type[i].name: similarity.field(i).to_numpy(zero_copy_only=False)
                for i in range(similarity.type.num_fields)
            },
        )

    def of_strategy(self, name: str) -> np.ndarray:
        """[C], True for the negatives of a strategy."""
        code = self.strategies.index(name) if name in self.strategies else -1
        return self.strategy == code


class GroupStore:
    """The groups of one split of some negative sets, numbered through.

    Args:
        sets: negative sets; that they belong together is for the caller to check.
        split: "train", "test" or "all".
        advice: what to do where there is no group of that split.
        in_support: keep only the groups whose ground truth the sampler could have said.

    The log counts the groups of the split and those that are kept.

    Attributes:
        sets, split, in_support: as given.
        blocks: per shard with groups of the split, the numbers of its groups, [n] each, in order.

    Raises:
        UserError: no group of that split, or none that is kept, or a set that does not say which to keep.
    """

    def __init__(
        self, sets: Sequence[NegativeSet], split: str, advice: str = ANOTHER_SPLIT, *, in_support: bool = False
    ):
        self.sets = list(sets)
        self.split = split
        self.in_support = in_support
        # Per shard: set, number in the set, and the rows that count.
        self._shards: list[tuple[int, int, np.ndarray]] = []
        for number, negatives in enumerate(self.sets):
            if not negatives.computes:
                negatives.compute_with(None)
            for index, rows in enumerate(_rows_of_split(negatives, split)):
                self._shards.append((number, index, rows))
        self._cache: OrderedDict[int, Shard] = OrderedDict()
        self.kept_groups = KEPT_GROUPS
        self._number()
        if not len(self):
            places = ", ".join(f"'{negatives.folder.path}'" for negatives in self.sets)
            raise UserError(f"negative set {places} holds no groups of split '{split}'. {advice}")
        groups = sum(shard.rows for negatives in self.sets for shard in negatives.manifest.shards)
        log.info("split '%s': %d of %s", split, len(self), counted(groups, "group"))
        if in_support:
            self._keep_in_support()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        # A worker of the data loader decodes its own.
        return {**self.__dict__, "_cache": OrderedDict()}

    @property
    def blocks(self) -> list[np.ndarray]:
        return [np.arange(a, b) for a, b in zip(self._starts[:-1], self._starts[1:], strict=True) if b > a]

    def ids(self, number: int) -> pa.ChunkedArray:
        """Ids of the groups of one of the sets; no other column is read."""
        found = [
            self.sets[number].peek(index, "id").take(rows) for owner, index, rows in self._shards if owner == number
        ]
        return pa.chunked_array([chunk for column in found for chunk in column.chunks], pa.string())

    def keep(self, groups: int) -> None:
        """Hold up to so many decoded groups and three of the largest blocks."""
        largest = int(np.diff(self._starts).max())
        self.kept_groups = max(self.kept_groups, groups + 3 * largest)

    def locate(self, number: int) -> tuple[Shard, int]:
        """The shard that holds a group, decoded, and the group's row in it."""
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._decoded(place), int(number - self._starts[place])

    def block_of(self, numbers: np.ndarray) -> Shard:
        """The groups of one of `blocks`, decoded."""
        return self._decoded(int(np.searchsorted(self._starts, numbers[0], side="right")) - 1)

    def drop(self, keep: Callable[[Shard], np.ndarray]) -> int:
        """Leave out groups for good; returns how many. Reads every shard once.

        Args:
            keep: for the groups of a shard, [R]: True where one stays, [R].
        """
        before = len(self)
        for place, (number, index, rows) in enumerate(self._shards):
            if len(rows):
                self._shards[place] = (number, index, rows[keep(self._decoded(place))])
                del self._cache[place]
        self._number()
        return before - len(self)

    def _keep_in_support(self) -> None:
        """Leave out the groups whose ground truth was out of the sampler's reach; of a shard one column is read."""
        groups = len(self)
        for place, (number, index, rows) in enumerate(self._shards):
            negatives = self.sets[number]
            known = negatives.peek(index, "in_support").take(rows) if negatives.knows_support else None
            if len(rows) and (known is None or known.null_count):
                unknown = why_unknown(negatives)
                raise UserError(
                    f"--in_support: negative set '{negatives.folder.path}' does not say of every group whether the "
                    f"sampler could have said its ground truth: {unknown.cause}. Leave the option out"
                    f"{', or ' + unknown.remedy if unknown.remedy else ''}."
                )
            if known is not None:
                self._shards[place] = (number, index, rows[known.to_numpy().astype(bool)])
        self._number()
        found = f"split '{self.split}': --in_support: {len(self)} of {counted(groups, 'group')} kept"
        if not len(self):
            raise UserError(f"{found}. Leave it out, or sample with --top_k 0 and a larger --max_new_tokens.")
        few = len(self) < FEW * groups
        log.log(logging.WARNING if few else logging.INFO, "%s%s", found, ", few to learn from" if few else "")

    def _number(self) -> None:
        self._starts = np.cumsum([0, *(len(rows) for _, _, rows in self._shards)])

    def _decoded(self, place: int) -> Shard:
        if place not in self._cache:
            number, index, rows = self._shards[place]
            table = self.sets[number].shard_table(index, COLUMNS)
            self._cache[place] = Shard.of(table if len(rows) == table.num_rows else table.take(rows))
            held = sum(len(shard.ids) for shard in self._cache.values())
            while held > self.kept_groups and len(self._cache) > 1:
                _, dropped = self._cache.popitem(last=False)
                held -= len(dropped.ids)
        self._cache.move_to_end(place)
        return self._cache[place]


def _rows_of_split(negatives: NegativeSet, split: str) -> list[np.ndarray]:
    """Per shard, the rows that belong to a split. Of a set of both halves, reads the `split` column only."""
    manifest = negatives.manifest
    made_from = manifest.job.get("data", {}).get("split")
    if split in ("all", made_from):
        return [np.arange(shard.rows) for shard in manifest.shards]
    if made_from in ("train", "test"):
        return [np.arange(0) for _ in manifest.shards]
    found = []
    for index in range(len(manifest.shards)):
        found.append(np.flatnonzero(negatives.peek(index, "split").to_numpy() == split))
    return found


def _one(column: pa.ChunkedArray) -> Any:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
