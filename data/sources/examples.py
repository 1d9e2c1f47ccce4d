"""Data sources: a name or a path in, examples out, split in the same two halves everywhere.

The split depends on the content of the rows alone (`data.sources.splits`): by default the first half of them (7,505 of
Dolly's 15,011) is `train`, the rest (7,506) is `test`. So a hub copy and a local file in another order give the same
halves, and `limit` takes a random sample rather than the head of a sorted file. Where the source has a train and a test
split of its own, or another source is named for the test rows, each row belongs where it comes from. Rows of the same
prompt are in the same half, but for a stream's and where each row belongs where it comes from.

Every example says which half it belongs to, and its group in the negative set says it too: one generation job can
make the training groups and the held-out ones, and trainer and evaluation choose by it. A row that a source's own
splits list in both halves is in both: `Source.summary` counts such rows. Rows of the same prompt and response are one
example: what repeats is a duplicate or, where candidates are read, one group with the lists of all
(`data.sources.repeats`).
"""

import dataclasses
import hashlib
import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, zip_longest
from typing import Any, NamedTuple, Protocol

from data.command.cleaning import shown
from data.command.errors import UserError
from data.command.wording import counted, is_or_are
from data.schema import example_id
from data.sources.column_check import ColumnCheck
from data.sources.encode import Problem
from data.sources.json_lines import Unreadable
from data.sources.readers import Joined, Part, Rows, open_rows
from data.sources.repeats import repeated
from data.sources.row_reader import RowReader
from data.sources.splits import (
    TEST_SHARE,
    check_held_out,
    in_order,
    in_turns,
    is_train,
    require_split,
    rows_of_train,
    split_key,
)
from data.sources.template_bounds import Endless

log = logging.getLogger(__name__)

# Rows in memory at a time.
BATCH = 256
# A stream whose first rows all lack the task's columns is of another kind.
HOPELESS = 1000
DUPLICATE: Problem = "duplicate", "same prompt and response as an earlier row"
# Of a stream whose rows list candidates: the group of the earlier row is on its way already.
TOO_LATE: Problem = (
    "repeats an earlier row",
    "same prompt and response, but not next to it: a stream merges the candidates of neighbours alone. Bring such rows "
    "together, or read without --streaming",
)


@dataclass(frozen=True)
class Example:
    """One prompt with its ground-truth response, as the task reads them: texts or lists of messages.

    Attributes:
        split: the half it belongs to, "train" or "test".
        problem: why it is unusable, as reason and detail, as far as that is seen without a tokenizer, or None.
            With one, `prompt` and `response` are the beginning of what stood there, to be shown.
        query: what a person asked, see `Task.query`.
        besides: what else the row says, see `Task.besides`.
        alternatives: other responses that the row lists, in its order, in the form of the response; None where no
            column of them was named.
        scores: of the alternatives, higher is better; None where the row gives none.
        unusable: of each other response that the row lists and that cannot be one of the alternatives, why; None for
            none.
    """

    id: str
    prompt: Any
    response: Any
    split: str = "train"
    problem: Problem | None = None
    query: str | None = None
    besides: list[dict[str, Any]] | None = None
    alternatives: list[Any] | None = None
    scores: list[float] | None = None
    unusable: list[str] | None = None

    @property
    def may_repeat(self) -> bool:
        """Whether another of its id is the same row; not where it cannot be used, or its text says what no id holds."""
        return self.problem is None and not (self.besides and isinstance(self.prompt, str))


class Source(Protocol):
    """The examples of a split. Each iteration reads them anew and gives the same.

    Attributes:
        num_examples: how many there are, or None of a stream.
        fingerprint: SHA-256 over the ids in order, see `fingerprint`, or None of a stream.
        lists_sha256: SHA-256 over what the rows list besides and its scores, which no id holds; None where nothing of
            the kind is read, or of a stream.
        own_splits: whether a row belongs where it comes from, not where its content puts it.
        halves_sha256: with `own_splits`, SHA-256 over the halves of the examples in order, which no id holds; else, or
            of a stream, None.
        summary: rows and halves of the whole source in words: "15,011 rows: 7,505 train, 7,506 held out". It counts
            what is in both halves and what is merged, and names the splits that are not read.
    """

    num_examples: int | None
    fingerprint: str | None
    lists_sha256: str | None
    own_splits: bool
    halves_sha256: str | None
    summary: str

    def __iter__(self) -> Iterator[Example]: ...


def open_source(
    dataset: str,
    task: str,
    split: str = "all",
    limit: int | None = None,
    streaming: bool = False,
    *,
    columns: Sequence[str] = (),
    prompt_template: str | None = None,
    test_share: float | None = None,
    test_dataset: str | None = None,
) -> Source:
    """The examples of one split, in the order of the split, read batch by batch.

    "all" takes turns: the first of train, the first of test, the second of train, ...; an odd one comes last. Rows
    that repeat each other exactly share an id; of those that are read the first is kept and the others have the
    problem "duplicate". Where candidates are read, such rows are merged: the lists of all, in the order of the source,
    are those of one example; of a stream only where they follow each other.

    Args:
        dataset: an embedded example, local files, or a hub id; see `data.sources.readers.open_rows`.
        task: see `data.sources.tasks.task_of`.
        split: "train", "test" or "all".
        limit: keep only the first so many examples; of "all", from each split in its proportion (of a stream, as they
            come).
        streaming: read nothing but what is asked for, in the order of the source.
        columns, prompt_template: see `data.sources.row_reader.RowReader.of`.
        test_share: of the rows, held out by their content; a test split of the source's own is then not read. None:
            the source's own test split where it has one, else the half.
        test_dataset: another source, whose rows are held out (of one with splits those of test); of `dataset` none is
            then.

    Raises:
        UserError: the source is missing, unreadable, empty or lacks the task's columns, or the options are at odds. Of
            a stream, also while it is iterated over.
    """
    reader = RowReader.of(task, columns, prompt_template)
    require_split(split)
    check_held_out(test_share, test_dataset)
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}.")
    places = reader.needed, reader.optional
    found = open_rows(dataset, *places, streaming)
    if "train" not in found:
        raise UserError(
            f"data set '{dataset}' has no split 'train' to take rows from. Name the one that it has: --dataset "
            f"{dataset}:{found['test'].split}, or give it as --test_dataset."
        )
    parts, unread = [Part(dataset, found.pop("train"))], [(dataset, name, rows) for name, rows in found.items()]
    if test_dataset is not None:
        others = open_rows(test_dataset, *places, streaming)
        parts.append(Part(test_dataset, others.pop("test" if "test" in others else "train")))
        unread += [(test_dataset, name, rows) for name, rows in others.items()]
    elif test_share is None and "test" in found:
        parts, unread = [*parts, Part(dataset, found["test"], is_own_test=True)], []
    share = TEST_SHARE if test_share is None else test_share
    source = (_Stream if streaming else _Table)(parts, reader, split, limit, share)
    if left := [f"the {name} split of '{where}'{_size(rows, streaming)}" for where, name, rows in unread]:
        source.summary += f"; not read: {', '.join(left)}"
    return source


def _size(rows: Rows, streaming: bool) -> str:
    return "" if streaming else f" ({counted(len(rows), 'line' if rows.are_lines else 'row')})"


def fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 over the ids in order: says whether two jobs read the same examples in the same order."""
    return hashlib.sha256("\n".join(e.id for e in examples).encode()).hexdigest()


class _Table:
    """A source whose rows can be fetched by number: an index of ids is all that is held."""

    def __init__(self, parts: Sequence[Part], reader: RowReader, split: str, limit: int | None, share: float):
        import numpy as np

        self._rows, self._reader, self.own_splits = Joined([part.rows for part in parts]), reader, len(parts) > 1
        ids, keys, prompts, lists, may_repeat = bytearray(), bytearray(), bytearray(), bytearray(), bytearray()
        numbers, counts, start = array("q"), list[int](), 0
        for part in parts:
            check = ColumnCheck(part, reader)
            for number, row in _fetched(part.rows, range(len(part.rows))):
                if row is not None:
                    check.see(row)
                    example = _checked(row, reader, part.dataset, number)
                    ids += bytes.fromhex(example.id)
                    keys += split_key(example.id)
                    prompts += _hash_of_prompt(example)
                    lists += _hash_of_lists(example) if reader.lists else b""
                    may_repeat.append(example.may_repeat)
                    numbers.append(start + number)
            if not (part.is_own_test and split == "train"):  # what nobody reads may be of another shape
                check.finish()
            start += len(part.rows)
            counts.append(len(numbers) - sum(counts))
        pairs, all_ids = np.frombuffer(ids, ">u8").reshape(-1, 2), np.frombuffer(ids, "S16")
        places = np.frombuffer(keys, ">u8").reshape(-1, 2)
        of_part = np.repeat(np.arange(len(counts)), counts)
        by_hash = in_order(places, of_part)
        by_content = None if self.own_splits else rows_of_train(pairs, places, np.frombuffer(prompts, ">u8"), share)
        in_train = of_part == 0 if by_content is None else by_content
        halves = {"train": by_hash[in_train[by_hash]], "test": by_hash[~in_train[by_hash]]}
        train = len(halves["train"])
        turns = in_turns(train, len(numbers) - train)
        chosen = np.concatenate([*halves.values()])[turns] if split == "all" else halves[split]
        in_both = int(np.isin(all_ids[halves["train"]], all_ids[halves["test"]]).sum())
        same = repeated(pairs, np.frombuffer(may_repeat, bool), chosen)
        is_later = np.isin(chosen, [row for first, rows in same.items() for row in rows if row != first])
        self._merged: dict[int, list[int]] = {}
        if reader.lists:
            self._merged, chosen = same, chosen[~is_later]
            is_later = np.zeros(len(chosen), bool)
        self._chosen, self._is_later, self._numbers = chosen[:limit], is_later[:limit], np.array(numbers)
        self._is_train = in_train[self._chosen]
        self.halves_sha256 = hashlib.sha256(self._is_train.tobytes()).hexdigest() if self.own_splits else None
        self.num_examples: int | None = len(self._chosen)
        self.fingerprint: str | None = _digest(pairs[self._chosen])
        read = [row for first in self._chosen for row in self._merged.get(int(first), [int(first)])]
        of_lists = np.frombuffer(lists, ">u8").reshape(-1, 2)
        self.lists_sha256: str | None = _digest(of_lists[read]) if reader.lists else None
        self.summary = f"{counted(len(numbers), 'row')}: {train:,} train, {len(numbers) - train:,} held out"
        if in_both:
            self.summary += f"; {in_both:,} of train {is_or_are(in_both)} held out too"
        if split != "all" or limit is not None:
            self.summary += f"; read: {len(read):,} of {'both' if split == 'all' else split}"
        if merged := len(read) - len(self._chosen):
            self.summary += f"; {_said_of_merged(merged)}"

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self._chosen), BATCH):
            part = slice(start, start + BATCH)
            several = [self._merged.get(int(first), [int(first)]) for first in self._chosen[part]]
            rows = iter(self._rows.fetch([int(self._numbers[row]) for some in several for row in some]))
            for some, is_in_train, is_later in zip(several, self._is_train[part], self._is_later[part], strict=True):
                example = _joined([_example(row, self._reader) for row in islice(rows, len(some))])
                yield _placed(example, "train" if is_in_train else "test", DUPLICATE if is_later else None)


class _Stream:
    """A source that is read from its beginning; of one with two splits their rows take turns."""

    num_examples: int | None = None
    fingerprint: str | None = None
    lists_sha256: str | None = None
    halves_sha256: str | None = None

    def __init__(self, parts: Sequence[Part], reader: RowReader, split: str, limit: int | None, share: float):
        self._parts, self._reader, self._split, self._limit, self._share = parts, reader, split, limit, share
        self.own_splits = len(parts) > 1
        row_by_row = (
            f"about {100 * share:g}% of them are held out, row by row: a prompt of several may be in both halves"
        )
        held_out = "those of the test split are held out" if self.own_splits else row_by_row
        self.summary = f"rows of a stream: {held_out}"

    def __iter__(self) -> Iterator[Example]:
        self._merged = 0
        yield from islice(self._examples(), self._limit)
        if self._merged:
            log.info("%s: %s", self._parts[0].dataset, _said_of_merged(self._merged))

    def _examples(self) -> Iterator[Example]:
        seen: set[bytes] = set()
        repeats = TOO_LATE if self._reader.lists else DUPLICATE
        parts = [self._neighbours_merged(self._of_part(number, part)) for number, part in enumerate(self._parts)]
        halves = ["train", "test"] if self.own_splits else [None]
        for several in zip_longest(*(part for part, half in zip(parts, halves, strict=True) if self._wants(half))):
            for example in several:
                if example is not None and self._wants(example.split):
                    key = bytes.fromhex(example.id)
                    yield _placed(example, example.split, repeats if example.may_repeat and key in seen else None)
                    if example.may_repeat:
                        seen.add(key)

    def _wants(self, half: str | None) -> bool:
        return half is None or self._split in (half, "all")

    def _neighbours_merged(self, examples: Iterator[Example]) -> Iterator[Example]:
        """Where candidates are read, one example of those of one id that follow each other."""
        if not self._reader.lists:
            yield from examples
            return
        for (_, may_repeat), run in groupby(examples, key=lambda example: (example.id, example.may_repeat)):
            if may_repeat:
                several = list(run)
                self._merged += len(several) - 1
                yield _joined(several)
            else:
                yield from run

    def _of_part(self, number: int, part: Part) -> Iterator[Example]:
        check = ColumnCheck(part, self._reader)
        for place, row in enumerate(part.rows):
            if row is None:
                continue
            check.see(row)
            if check.rows == HOPELESS:
                check.finish()
            example = _checked(row, self._reader, part.dataset, place)
            held_out = number == 1 if self.own_splits else not is_train(example.id, self._share)
            yield dataclasses.replace(example, split="test" if held_out else "train")
        check.finish()


class _Place(NamedTuple):
    number: int
    row: Any


def _fetched(rows: Rows | Joined, numbers: Any) -> Iterator[_Place]:
    """Rows by number, BATCH at a time."""
    for start in range(0, len(numbers), BATCH):
        batch = [int(number) for number in numbers[start : start + BATCH]]
        yield from map(_Place, batch, rows.fetch(batch))


def _checked(row: Any, reader: RowReader, dataset: str, number: int) -> Example:
    """The example in a row of this number, from 0 on. Raises UserError if the template is beyond its bounds there."""
    try:
        return _example(row, reader)
    except Endless as error:
        raise UserError(f"{error} for row {number + 1} of data set '{dataset}'. Correct the template.") from error


def _example(row: Any, reader: RowReader) -> Example:
    if isinstance(row, Unreadable):
        return Example(example_id(row.text, row.reason), shown(row.text), "", problem=(row.reason, row.detail))
    try:
        parts = reader.read(row)
        identifier = example_id(parts.prompt, parts.response)
    except RecursionError:
        return Example(example_id("", "nested"), "", "", problem=("not text", "nested too deeply"))
    if parts.problem is not None:
        return Example(identifier, shown(parts.prompt), shown(parts.response), problem=parts.problem)
    return Example(
        identifier,
        parts.prompt,
        parts.response,
        query=parts.query,
        besides=parts.besides,
        alternatives=parts.alternatives,
        scores=parts.scores,
        unusable=parts.unusable,
    )


def _joined(several: Sequence[Example]) -> Example:
    """One example of usable ones of the same prompt and response: what the first says, with the lists of all."""
    if len(several) == 1:
        return several[0]
    lists = {
        name: [item for example in several for item in getattr(example, name) or ()] or None
        for name in ("scores", "unusable")
    }
    alternatives = [item for example in several for item in example.alternatives or ()]
    return dataclasses.replace(several[0], alternatives=alternatives, **lists)


def _said_of_merged(rows: int) -> str:
    return f"{counted(rows, 'row')} of the same prompt and response as another merged into it"


def _placed(example: Example, split: str, repeats: Problem | None) -> Example:
    """Args: repeats: what is said of an example that an earlier one was like."""
    return dataclasses.replace(example, split=split, problem=example.problem or repeats)


def _hash_of_prompt(example: Example) -> bytes:
    """8 bytes, alike for rows of the same prompt; of a row that cannot be used, whose prompt may be cut, of its id."""
    return bytes.fromhex(example.id if example.problem else example_id(example.prompt, ""))[:8]


def _hash_of_lists(example: Example) -> bytes:
    lists = example.alternatives, example.scores, example.unusable
    return hashlib.sha256(repr(lists).encode("utf-8", "surrogatepass")).digest()[:16]


def _digest(ids: Any) -> str:
    """Hex SHA-256 of ids, a line each, for `fingerprint`. Args: ids: [rows, 2], the halves of each."""
    digest = hashlib.sha256()
    for number, identifier in enumerate(ids):
        digest.update(b"\n" * (number > 0) + identifier.tobytes().hex().encode())
    return digest.hexdigest()
