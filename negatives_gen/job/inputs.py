"""What a shard is made from: examples staged by the driver, or a shard of the set that is being extended.

The driver reads the data source once, from beginning to end, and writes each shard's examples to `_job/inputs`; a
worker reads its shard from there. So the driver holds one shard at a time, and ids to find duplicates by; a stream
need not be read twice, and after a crash the examples are those of the first run.
"""

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from data.command.errors import UserError
from data.manifest import shard_name
from data.models import load_tokenizer
from data.parquet import read_parquet
from data.schema import Group, Reject, as_messages
from data.set_directory import INPUTS, SetDirectory
from data.shape import Count, ListOf, parse_json, parse_shaped
from data.shard_records import JOB_FOLDER, ShardEntry, record_name, recorded
from data.shards import NegativeSet
from data.sources.examples import Example
from data.sources.prepare import Prepared, prepare_groups
from data.storage import Folder, sha256
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import SCORE, Strategy

log = logging.getLogger(__name__)

# What an API may take.
SPENT = ("requests", "input_tokens", "output_tokens")
STAGED = f"{JOB_FOLDER}/inputs.json"
SELDOM = ("besides", "alternatives", "scores", "unusable")  # of an example


@dataclass
class Shard:
    """A shard on its way through the stages.

    Attributes:
        groups: rows that want negatives or have them.
        pool: all usable rows in the order of their ids: groups, and those that a strategy has given up.
        rejects: rows that become no group.
        truncated: rows whose text was cut.
        seconds, occupancy, slot_seconds: see `data.manifest.ShardRecord`.
        spent: on an API in this run, by `SPENT`.
    """

    groups: list[Group]
    pool: list[Group]
    rejects: list[Reject]
    truncated: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    occupancy: float | None = None
    slot_seconds: dict[str, float] | None = None
    spent: Counter[str] = field(default_factory=Counter)

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


# Of a prompt as messages: the roles that speak, in their order. All texts are of one kind.
Kind = tuple[str, ...]


def kind_of(messages: Sequence[dict[str, str]]) -> Kind:
    """The kind of a prompt."""
    return tuple(message["role"] for message in messages)


class ShardSource(Protocol):
    """Where a worker gets a shard from."""

    def load(self, index: int) -> Shard: ...

    def kinds(self, index: int, known: Container[Kind]) -> dict[Kind, list[dict[str, str]]]:
        """The prompt of a group, as messages, of each kind of prompt that a shard has and that is not known."""
        ...


@dataclass(frozen=True)
class Staged:
    """What was staged: number of examples, SHA-256 over their ids in order, number of shards.

    Attributes:
        sha256: of each shard's file.
        content: SHA-256 of what decides the content of the job's set.
    """

    examples: int
    examples_sha256: str
    shards: int
    sha256: list[str]
    content: str

    def damaged(self, folder: Folder) -> list[str]:
        """Files that are missing, or not what was staged."""
        names = [_inputs_name(index) for index in range(self.shards)]
        found = (folder.read_if_there(name) for name in names)
        pairs = zip(names, self.sha256, found, strict=True)
        return [name for name, expected, content in pairs if content is None or sha256(content) != expected]


STAGED_SHAPE = {
    "examples": Count(),
    "examples_sha256": str,
    "shards": Count(),
    "sha256": ListOf(str),
    "content": str,
}


def stage_inputs(directory: SetDirectory, examples: Iterable[Example], size: int) -> Staged:
    """Write the examples, at most `size` to a shard; does nothing if an earlier run of the job has done it.

    What an earlier run staged and is damaged is staged again. Shards that are finished stay, and belong to the same
    examples: a stream that has other ones by now is refused.

    Raises:
        UserError: there are no examples, they are not those of the finished shards, another run owns the directory by
            now, or the place cannot be written.
    """
    folder = directory.folder
    before = _staged(folder)
    if before is not None and before.content == directory.content_sha256:
        damaged = before.damaged(folder)
        if not damaged:
            return before
        log.warning("'%s': damaged or missing, and staged again: %s", folder.path, ", ".join(damaged[:5]))
        folder.remove(STAGED)
    digest, count, hashes, ids = hashlib.sha256(), 0, list[str](), dict[int, list[str]]()
    finished = recorded(folder)
    for index, part in enumerate(_cut(iter(examples), size)):
        content = "\n".join(json.dumps(_row(example)) for example in part).encode()
        directory.check()
        folder.write(_inputs_name(index), content)
        hashes.append(sha256(content))
        for example in part:
            digest.update((b"\n" if count else b"") + example.id.encode())
            count += 1
        if index in finished:
            ids[index] = [example.id for example in part]
    if not count:
        raise UserError("the data set has no rows in this split. Choose another --dataset or --split.")
    _refuse_other_examples(folder, finished, ids)
    staged = Staged(count, digest.hexdigest(), len(hashes), hashes, directory.content_sha256)
    directory.check()
    folder.write(STAGED, json.dumps(dataclasses.asdict(staged)).encode())
    return staged


def _staged(folder: Folder) -> Staged | None:
    """What an earlier run staged; None if it did not finish, or its record is damaged."""
    content = folder.read_if_there(STAGED)
    if content is None:
        return None
    try:
        staged = Staged(**parse_shaped(content, STAGED_SHAPE))
    except (ValueError, TypeError):
        return None
    return staged if len(staged.sha256) == staged.shards else None


def _refuse_other_examples(folder: Folder, finished: set[int], ids: dict[int, list[str]]) -> None:
    """Raise UserError if shards that are finished were made of other examples than those that were just staged."""
    for index in sorted(finished):
        groups = read_parquet(folder.read(shard_name(index)), ["id"])["id"].to_pylist()
        entry = ShardEntry.from_json(folder.read(record_name(index)))
        if Counter([*groups, *(reject.id for reject in entry.rejects)]) != Counter(ids.get(index, [])):
            raise UserError(
                f"'{folder.path}': the data set has changed since {shard_name(index)} was made of it. Restore it, or "
                "choose another --out."
            )


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
    _staged: Staged | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tokenizer": None, "_staged": None}

    def load(self, index: int) -> Shard:
        prepared = self._prepared(self._examples(index))
        pool = sorted(prepared.groups, key=lambda group: group.id)
        return Shard(list(prepared.groups), pool, list(prepared.rejects), prepared.truncated)

    def kinds(self, index: int, known: Container[Kind]) -> dict[Kind, list[dict[str, str]]]:
        found: dict[Kind, list[dict[str, str]]] = {}
        for example in self._examples(index):
            if example.problem is not None:
                continue
            messages = as_messages(example.prompt if isinstance(example.prompt, list) else None, example.query)
            kind = kind_of(messages)
            # What the reference itself cannot take becomes no group.
            if kind not in known and kind not in found and self._prepared([example]).groups:
                found[kind] = messages
        return found

    def _prepared(self, examples: list[Example]) -> Prepared:
        self._tokenizer = self._tokenizer or load_tokenizer(self.model, self.trust_remote_code)
        return prepare_groups(examples, self.task, self._tokenizer, self.max_length)

    def _examples(self, index: int) -> list[Example]:
        """A shard's staged examples. Raises UserError if they are gone, or not as the driver staged or checked them."""
        name = _inputs_name(index)
        self._staged = self._staged or _staged(self.folder)
        content = self.folder.read_if_there(name)
        if content is None or self._staged is None or self._staged.sha256[index : index + 1] != [sha256(content)]:
            raise UserError(
                f"'{self.folder.path}/{name}' is missing or damaged. Run the same command again; it stages it again."
            )
        return [_example(parse_json(line)) for line in content.decode().split("\n")]


@dataclass
class ParentShards:
    """Shards of a finished set, to be extended: what they have is kept, rows that a strategy gave up stay rejected.

    Attributes:
        path: of the set.
        vocabulary, context: of the reference model, see `data.shards.NegativeSet.give_to`.
        widened: whether a strategy that samples is new, so that what was out of reach may not be so any more.
    """

    path: str
    vocabulary: int | None = None
    context: int | None = None
    widened: bool = False
    _opened: tuple[NegativeSet, list[Reject]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def load(self, index: int) -> Shard:
        parent, rejects = self._open()
        records = parent.manifest.shards
        start = sum(record.rows_rejected for record in records[:index])  # rejects lie in the order of their shards
        rejects = rejects[start : start + records[index].rows_rejected]
        groups = parent.shard(index)
        _drop_nulls(groups, parent.manifest.only_of)
        if self.widened:
            for group in groups:
                group.in_support = group.in_support or None
        aside = [_usable(reject) for reject in rejects if reject.strategy is not None]
        pool = sorted([*groups, *aside], key=lambda group: group.id)
        return Shard(groups, pool, rejects, records[index].rows_truncated)

    def kinds(self, index: int, known: Container[Kind]) -> dict[Kind, list[dict[str, str]]]:
        parent, _ = self._open()
        chats, queries = (parent.peek(index, column).to_pylist() for column in ("messages", "query"))
        found = {kind_of(messages): messages for messages in map(as_messages, chats, queries)}
        return {kind: messages for kind, messages in found.items() if kind not in known}

    def _open(self) -> tuple[NegativeSet, list[Reject]]:
        if self._opened is None:
            parent = NegativeSet(self.path, current=True)
            parent.give_to(self.vocabulary, self.context)
            self._opened = parent, parent.rejects()
        return self._opened


def _drop_nulls(groups: Sequence[Group], only_of: Mapping[str, Collection[str]]) -> None:
    """Leave out the values that a set without scores lacks, so that signals give them; a null that belongs there stays.

    Args:
        only_of: see `data.manifest.only_of`.
    """
    for candidate in (candidate for group in groups for candidate in group.negatives):
        for name in [name for name, value in candidate.similarity.items() if value is None]:
            if candidate.strategy in only_of.get(name, (candidate.strategy,)):
                del candidate.similarity[name]


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


def _row(example: Example) -> dict[str, Any]:
    row = dataclasses.asdict(example)
    # Of nearly all these are None: what is staged is what it was before there were such fields.
    return {name: value for name, value in row.items() if value is not None or name not in SELDOM}


def _example(row: dict[str, Any]) -> Example:
    return Example(**{**row, "problem": tuple(row["problem"]) if row["problem"] else None})


def _inputs_name(index: int) -> str:
    return f"{INPUTS}/{index:05d}.jsonl"
