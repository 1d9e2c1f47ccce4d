"""Data sources: a name or a path in, examples out, split in the same two halves everywhere.

The split depends on the content of the rows alone. Rows are ordered by a hash of their id; the first half
(7,505 of Dolly's 15,011) is `train`, the rest (7,506) is `test`. So a hub copy and a local file in another
order give the same halves, and `limit` takes a random sample rather than the head of a sorted file.
A stream has no middle that could be known beforehand: there the first bit of the hash decides, and rows keep the order
of the source.

Every example says which half it belongs to, and its group in the negative set says it too: one generation job can
make the training groups and the held-out ones, and trainer and evaluation choose by it, so no held-out row is trained
on. A prompt that occurs with several responses may occur in both halves (100 of Dolly's test prompts do).
"""

import dataclasses
import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

from data.command.cleaning import storable
from data.command.errors import UserError
from data.schema import example_id
from data.sources.encode import Problem
from data.sources.readers import READERS as READERS
from data.sources.readers import Rows, Unreadable, read_rows
from data.sources.tasks import task_of

SPLITS = ("train", "test", "all")
SPLIT_SEED = 0
# Rows in memory at a time.
BATCH = 256
# A stream whose first rows all lack the task's columns is of another kind.
HOPELESS = 1000
SHOWN = 200


@dataclass(frozen=True)
class Example:
    """One prompt with its ground-truth response, as the task reads them: texts or lists of messages.

    Attributes:
        split: the half it belongs to, "train" or "test".
        problem: why it is unusable, as reason and detail, as far as that is seen without a tokenizer, or None.
            With one, `prompt` and `response` are the beginning of what stood there, to be shown.
        query: what a person asked, see `Task.query`.
        besides: what else the row says, see `Task.besides`.
    """

    id: str
    prompt: Any
    response: Any
    split: str = "train"
    problem: Problem | None = None
    query: str | None = None
    besides: list[dict[str, Any]] | None = None


class Source(Protocol):
    """The examples of a split. Each iteration reads them anew and gives the same.

    Attributes:
        num_examples: how many there are, or None of a stream.
        fingerprint: SHA-256 over the ids in order, see `fingerprint`, or None of a stream.
    """

    num_examples: int | None
    fingerprint: str | None

    def __iter__(self) -> Iterator[Example]: ...


def open_source(
    dataset: str, task: str, split: str = "all", limit: int | None = None, streaming: bool = False
) -> Source:
    """The examples of one split, in the order of the split, read batch by batch.

    "all" takes turns: the first of train, the first of test, the second of train, ...; an odd one comes last. Rows
    that repeat each other exactly share an id and are neighbours in the order of the hash, so at most one run of them
    straddles the boundary; of each, the first that is read is kept and the others have the problem "duplicate".

    Args:
        dataset: `facts` (the embedded world), a local .jsonl/.json/.parquet/.csv file, or a hub id.
        task: see `data.sources.tasks.task_of`.
        split: "train", "test" or "all".
        limit: keep only the first so many; of "all", half from each split (of a stream, as they come).
        streaming: read nothing but what is asked for, in the order of the source.

    Raises:
        UserError: the source is missing, unreadable, empty or lacks the task's columns. Of a stream, also while it is
            iterated over.
    """
    task_of(task)
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'. Use one of {', '.join(SPLITS)}.")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}.")
    rows = read_rows(dataset, task_of(task).columns, task_of(task).optional, streaming)
    return (_Stream if streaming else _Table)(rows, dataset, task, split, limit)


def load_examples(dataset: str, task: str, split: str = "all", limit: int | None = None) -> list[Example]:
    """All examples of one split in a list; see `open_source`."""
    return list(open_source(dataset, task, split, limit))


def fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 over the ids in order: says whether two jobs read the same examples in the same order."""
    return hashlib.sha256("\n".join(e.id for e in examples).encode()).hexdigest()


def as_example(prompt: Any, response: Any, task: str, split: str = "train") -> Example:
    """An example of what a task has read in one row."""
    problem = task_of(task).problem(prompt, response)
    kept = (prompt, response) if problem is None else (shown(prompt), shown(response))
    return Example(example_id(prompt, response), *kept, split, problem)


def shown(value: Any) -> str:
    """The beginning of anything as valid text."""
    return storable(str(value)[:SHOWN])


class _Table:
    """A source whose rows can be fetched by number: an index of ids is all that is held."""

    def __init__(self, rows: Rows, dataset: str, task: str, split: str, limit: int | None):
        import numpy as np

        self._rows, self._task = rows, task
        check, ids, keys, numbers = _ColumnCheck(dataset, task), bytearray(), bytearray(), array("q")
        for number, row in _fetched(rows, range(len(rows))):
            if row is not None:
                check.see(row)
                example = _example(row, task)
                ids += bytes.fromhex(example.id)
                keys += _split_key(example.id)
                numbers.append(number)
        check.finish()
        count = len(numbers)
        half = count // 2
        high, low = np.frombuffer(keys, ">u8").reshape(count, 2).T
        ordered = np.lexsort((low, high))  # stable: equal ids stay in the order of the source
        if split == "all":
            places = np.concatenate([np.arange(2 * half).reshape(2, half).T.ravel(), np.arange(2 * half, count)])
        else:
            places = np.arange(half) if split == "train" else np.arange(half, count)
        places = places[:limit]
        by_place = np.frombuffer(ids, ">u8").reshape(count, 2)[ordered]
        runs = np.concatenate([[0], (by_place[1:] != by_place[:-1]).any(axis=1).cumsum()])[places]
        self._is_first = np.zeros(len(places), bool)
        self._is_first[np.unique(runs, return_index=True)[1]] = True
        self._is_train = places < half
        self._numbers = np.array(numbers)[ordered[places]]
        self.num_examples: int | None = len(places)
        self.fingerprint: str | None = _digest(by_place[places])

    def __iter__(self) -> Iterator[Example]:
        rows = _fetched(self._rows, self._numbers)
        for (_, row), is_train, is_first in zip(rows, self._is_train, self._is_first, strict=True):
            yield _placed(_example(row, self._task), "train" if is_train else "test", not is_first)


class _Stream:
    """A source that is read from its beginning."""

    num_examples: int | None = None
    fingerprint: str | None = None

    def __init__(self, rows: Rows, dataset: str, task: str, split: str, limit: int | None):
        self._rows, self._dataset, self._task, self._split, self._limit = rows, dataset, task, split, limit

    def __iter__(self) -> Iterator[Example]:
        return islice(self._examples(), self._limit)

    def _examples(self) -> Iterator[Example]:
        check, seen = _ColumnCheck(self._dataset, self._task), set()
        for row in self._rows:
            if row is None:
                continue
            check.see(row)
            if check.rows == HOPELESS:
                check.finish()
            example = _example(row, self._task)
            split = "train" if _split_key(example.id)[0] < 128 else "test"
            if self._split in (split, "all"):
                key = bytes.fromhex(example.id)
                yield _placed(example, split, key in seen)
                seen.add(key)
        check.finish()


class _ColumnCheck:
    """Whether any row has the columns of the task: if none has, it is the wrong task, not bad rows."""

    def __init__(self, dataset: str, task: str):
        self.dataset, self.task, self.columns = dataset, task, task_of(task).columns
        self.rows, self.fits, self.found = 0, False, set[str]()
        self.first: Any = None
        self.unreadable: Unreadable | None = None

    def see(self, row: Any) -> None:
        self.rows += 1
        if isinstance(row, Unreadable):
            self.unreadable = self.unreadable or row
        elif not self.fits:
            self.first = list(row) if self.first is None else self.first
            self.found.update(column for column in self.columns if column in row)
            self.fits = all(column in row for column in self.columns)

    def finish(self) -> None:
        """Raise UserError unless a row had the columns."""
        if self.fits:
            return
        if not self.rows:
            raise UserError(f"data set '{self.dataset}' has no rows.")
        if self.first is None:
            assert self.unreadable is not None  # every row is one or the other
            raise UserError(
                f"cannot read '{self.dataset}' as jsonl: no line of it is a JSON object (the first is "
                f"{self.unreadable.reason}: {self.unreadable.detail})."
            )
        missing = [column for column in self.columns if column not in self.found] or self.columns
        raise UserError(
            f"data set '{self.dataset}' has no column '{missing[0]}', which task '{self.task}' needs; it has: "
            f"{', '.join(map(shown, self.first))}. Choose another --task or rename the column."
        )


class _Place(NamedTuple):
    number: int
    row: Any


def _fetched(rows: Rows, numbers: Any) -> Iterator[_Place]:
    """Rows by number, BATCH at a time."""
    for start in range(0, len(numbers), BATCH):
        batch = [int(number) for number in numbers[start : start + BATCH]]
        yield from map(_Place, batch, rows.fetch(batch))


def _example(row: Any, task: str) -> Example:
    if isinstance(row, Unreadable):
        return Example(example_id(row.text, row.reason), shown(row.text), "", problem=(row.reason, row.detail))
    how = task_of(task)
    try:
        example = as_example(*how.read(row), task)
        if example.problem:
            return example
        return dataclasses.replace(example, query=how.query(row), besides=how.besides(row))
    except RecursionError:
        return Example(example_id("", "nested"), "", "", problem=("not text", "nested too deeply"))


def _placed(example: Example, split: str, is_duplicate: bool) -> Example:
    problem = example.problem
    if is_duplicate and problem is None:
        problem = "duplicate", "same prompt and response as an earlier row"
    return dataclasses.replace(example, split=split, problem=problem)


def _split_key(identifier: str) -> bytes:
    return hashlib.sha256(f"{SPLIT_SEED}:{identifier}".encode()).digest()[:16]


def _digest(ids: Any) -> str:
    """Hex SHA-256 of ids, a line each, for `fingerprint`. Args: ids: [rows, 2], the halves of each."""
    digest = hashlib.sha256()
    for number, identifier in enumerate(ids):
        digest.update(b"\n" * (number > 0) + identifier.tobytes().hex().encode())
    return digest.hexdigest()
