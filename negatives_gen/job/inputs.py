"""What a shard is made from: examples staged by the driver, or a shard of the set that is being extended.

The driver reads the data source once, from beginning to end, and writes each shard's examples to `_job/inputs`; a
worker reads its shard from there. So the driver holds one shard at a time, and ids to find duplicates by; a stream
need not be read twice, and after a crash the examples are those of the first run.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from data.command.errors import UserError
from data.models import load_tokenizer
from data.schema import Group, Reject
from data.set_directory import INPUTS
from data.shard_records import JOB_FOLDER
from data.shards import NegativeSet
from data.sources.examples import Example
from data.sources.prepare import prepare_groups
from data.storage import Folder
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import SCORE, Strategy

STAGED = f"{JOB_FOLDER}/inputs.json"


@dataclass
class Shard:
    """A shard on its way through the stages.

    Attributes:
        groups: rows that want negatives or have them.
        pool: all usable rows in the order of their ids: groups, and those that a strategy has given up.
        rejects: rows that become no group.
        truncated: rows whose text was cut.
        seconds: see `data.manifest.ShardRecord`.
    """

    groups: list[Group]
    pool: list[Group]
    rejects: list[Reject]
    truncated: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def tried_by(self, strategy: Strategy) -> list[Group]:
        """The groups, and the rows of an extended set that a strategy of the same or a later turn had set aside.

        A row's reject names the strategy of the first turn that cannot serve it, whichever was asked first: so the
        rejects of an extended set are those of one go. Engine and API are not asked for rows that stay rejected.
        """
        if strategy.stage != SCORE:
            return self.groups
        later = {r.id for r in self.rejects if r.strategy and STRATEGIES.load(r.strategy).turn >= strategy.turn}
        return [*self.groups, *(group for group in self.pool if group.id in later)]

    def set_aside(self, strategy: str, short: dict[str, str]) -> None:
        """Reject the groups that a strategy could not serve; they stay in the pool, without their negatives."""
        self.groups = [group for group in self.groups if group.id not in short]
        self.rejects = [reject for reject in self.rejects if reject.strategy is None or reject.id not in short]
        served = {group.id for group in self.groups}
        for group in self.pool:
            if group.id not in served:
                group.negatives = []
            if group.id in short:
                self.rejects.append(_reject(group, strategy, short[group.id]))
        self.rejects.sort(key=_place)


class ShardSource(Protocol):
    """Where a worker gets a shard from."""

    def load(self, index: int) -> Shard: ...


@dataclass(frozen=True)
class Staged:
    """What was staged: number of examples, SHA-256 over their ids in order, number of shards."""

    examples: int
    examples_sha256: str
    shards: int


def stage_inputs(folder: Folder, examples: Iterable[Example], size: int) -> Staged:
    """Write the examples, at most `size` to a shard; does nothing if an earlier run of the job has done it.

    Raises:
        UserError: there are no examples, or the place cannot be written.
    """
    try:
        return Staged(**json.loads(folder.read(STAGED)))
    except FileNotFoundError:
        pass
    digest, count, shards = hashlib.sha256(), 0, 0
    for part in _cut(iter(examples), size):
        lines = [json.dumps(dataclasses.asdict(example)) for example in part]
        folder.write(_inputs_name(shards), "\n".join(lines).encode())
        for example in part:
            digest.update((b"\n" if count else b"") + example.id.encode())
            count += 1
        shards += 1
    if not count:
        raise UserError("the data set has no rows in this split. Choose another --dataset or --split.")
    staged = Staged(count, digest.hexdigest(), shards)
    folder.write(STAGED, json.dumps(dataclasses.asdict(staged)).encode())
    return staged


def _cut(examples: Iterator[Example], size: int) -> Iterator[list[Example]]:
    """Parts of `size` examples; the last two share what is left, or a handful would have no neighbours for BN."""
    part = list(islice(examples, size))
    while following := list(islice(examples, size)):
        if len(following) < size:
            rest = part + following
            half = -(-len(rest) // 2)
            part, following = rest[:half], rest[half:]
        yield part
        part = following
    if part:
        yield part


@dataclass
class StagedShards:
    """Shards from `_job/inputs`, tokenised where they are loaded.

    Attributes:
        model: directory of the reference model, whose tokenizer is used.
        max_length: prompt and response in tokens, at most.
    """

    folder: Folder
    task: str
    model: str
    max_length: int
    trust_remote_code: bool = False
    _tokenizer: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tokenizer": None}

    def load(self, index: int) -> Shard:
        self._tokenizer = self._tokenizer or load_tokenizer(self.model, self.trust_remote_code)
        lines = self.folder.read(_inputs_name(index)).decode().split("\n")
        examples = [_example(json.loads(line)) for line in lines]
        prepared = prepare_groups(examples, self.task, self._tokenizer, self.max_length)
        pool = sorted(prepared.groups, key=lambda group: group.id)
        return Shard(list(prepared.groups), pool, list(prepared.rejects), prepared.truncated)


@dataclass
class ParentShards:
    """Shards of a finished set, to be extended: what they have is kept, rows that a strategy gave up stay rejected."""

    path: str
    _opened: tuple[NegativeSet, list[Reject]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def load(self, index: int) -> Shard:
        if self._opened is None:
            parent = NegativeSet(self.path, current=True)
            self._opened = parent, parent.rejects()
        parent, rejects = self._opened
        records = parent.manifest.shards
        start = sum(record.rows_rejected for record in records[:index])  # rejects lie in the order of their shards
        rejects = rejects[start : start + records[index].rows_rejected]
        groups = parent.shard(index)
        aside = [_usable(reject) for reject in rejects if reject.strategy is not None]
        pool = sorted([*groups, *aside], key=lambda group: group.id)
        return Shard(groups, pool, rejects, records[index].rows_truncated)


def _reject(group: Group, strategy: str, detail: str) -> Reject:
    return Reject(
        id=group.id,
        reason=f"too few {strategy} negatives",
        detail=detail,
        prompt=group.prompt,
        strategy=strategy,
        response=group.response,
        split=group.split,
        prompt_ids=list(group.prompt_ids),
        response_ids=list(group.response_ids),
        messages=group.messages,
        query=group.query,
    )


def _place(reject: Reject) -> tuple[Any, ...]:
    """Unusable rows as they were read, then what each strategy set aside by id: an order that no history changes."""
    return (1, STRATEGIES.load(reject.strategy).turn, reject.id) if reject.strategy else (0,)


def _usable(reject: Reject) -> Group:
    # All set, see `_reject`.
    fields = ("id", "prompt", "response", "prompt_ids", "response_ids", "split", "messages", "query")
    return Group(**{name: getattr(reject, name) for name in fields})


def _example(row: dict[str, Any]) -> Example:
    return Example(**{**row, "problem": tuple(row["problem"]) if row["problem"] else None})


def _inputs_name(index: int) -> str:
    return f"{INPUTS}/{index:05d}.jsonl"
