"""Data sources: a name or a path in, examples out, split in the same two halves everywhere.

The split depends on the content of the rows alone. Rows are ordered by a hash of their id; the first half
(7,505 of Dolly's 15,011) is `train`, the rest (7,506) is `test`. So a hub copy and a local file in another
order give the same halves, and `limit` takes a random sample rather than the head of a sorted file.

Every example says which half it belongs to, and its group in the negative set says it too: one generation job can
make the training groups and the held-out ones, and trainer and evaluation choose by it, so no held-out row is trained
on. A prompt that occurs with several responses may occur in both halves (100 of Dolly's test prompts do).
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import facts
from data.errors import UserError, first_line
from data.schema import example_id
from data.tasks import COLUMNS, TASKS, check_task

SPLITS = ("train", "test", "all")
SPLIT_SEED = 0
READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class Example:
    """One prompt with its ground-truth response. Texts may be unusable (None, empty); `prepare` decides.

    Attributes:
        split: the half it belongs to, "train" or "test"; `split_examples` sets it.
    """

    id: str
    prompt: Any
    response: Any
    split: str = "train"


def load_examples(dataset: str, task: str, split: str = "all", limit: int | None = None) -> list[Example]:
    """Read the examples of one split, in the order of the split.

    Args:
        dataset: `facts` (the embedded world), a local .jsonl/.json/.parquet/.csv file, or a hub id.
        task: key of `data.tasks.TASKS`.
        split: "train", "test" or "all" (both, see `split_examples`).
        limit: keep only the first so many; of "all", half from each split.

    Raises:
        UserError: the source is missing, unreadable, empty or lacks the task's columns.
    """
    check_task(task)
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'. Use one of {', '.join(SPLITS)}.")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}.")
    rows = _read(dataset)
    examples = [_example(row, dataset, task) for row in rows]
    if not examples:
        raise UserError(f"data set '{dataset}' has no rows.")
    return split_examples(examples, split)[:limit]


def split_examples(examples: Iterable[Example], split: str) -> list[Example]:
    """The examples of one split, ordered by a hash of their ids, each with its `split` set.

    "all" takes turns: the first of train, the first of test, the second of train, ...; an odd one comes last.
    The halves are disjoint for distinct rows. Rows that repeat each other exactly share an id, so they lie side by
    side and at most one run of them straddles the boundary. Read as "all", `prepare` keeps its held-out row only.
    """
    ordered = sorted(examples, key=lambda e: hashlib.sha256(f"{SPLIT_SEED}:{e.id}".encode()).digest())
    half = len(ordered) // 2
    train = [dataclasses.replace(e, split="train") for e in ordered[:half]]
    test = [dataclasses.replace(e, split="test") for e in ordered[half:]]
    if split == "all":
        return [e for pair in zip(train, test, strict=False) for e in pair] + test[half:]
    return {"train": train, "test": test}[split]


def fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 over the ids in order: says whether two jobs read the same examples in the same order."""
    return hashlib.sha256("\n".join(e.id for e in examples).encode()).hexdigest()


def _example(row: Mapping[str, Any], dataset: str, task: str) -> Example:
    missing = [column for column in COLUMNS[task] if column not in row]
    if missing:
        raise UserError(
            f"data set '{dataset}' has no column '{missing[0]}', which task '{task}' needs; it has: "
            f"{', '.join(map(str, row))}. Choose another --task or rename the column."
        )
    prompt, response = TASKS[task](row)
    return Example(example_id(prompt, response), prompt, response)


def _read(dataset: str) -> Iterable[Any]:
    if dataset == "facts":
        return facts.examples()
    from datasets import load_dataset

    path = Path(os.path.expanduser(dataset))
    looks_local = path.suffix in READERS or path.is_absolute() or dataset.startswith((".", "~"))
    if looks_local or path.exists():
        if path.is_dir():
            raise UserError(
                f"data set '{dataset}' is a directory. Give one file, ending in {', '.join(READERS)}, or a hub id."
            )
        if not path.is_file():
            raise UserError(f"data file '{dataset}' does not exist. Give an existing file or a hub id.")
        if path.suffix not in READERS:
            raise UserError(f"cannot read '{dataset}': expected a file ending in {', '.join(READERS)}.")
        if path.stat().st_size == 0:
            raise UserError(f"data set '{dataset}' has no rows.")
        # In a table of texts, 'None', 'N/A' and an empty cell are texts too.
        options: dict[str, Any] = {"keep_default_na": False} if path.suffix == ".csv" else {}
        try:
            return load_dataset(READERS[path.suffix], data_files=str(path.resolve()), split="train", **options)
        except Exception as error:  # datasets wraps whatever the parser of the format raised
            reason = first_line(error.__cause__ or error)
            if "corresponds to no data" in reason:  # a file with a header, brackets or blank lines only
                raise UserError(f"data set '{dataset}' has no rows.") from error
            raise UserError(f"cannot read '{dataset}' as {path.suffix[1:]}: {reason}") from error
    try:
        return load_dataset(dataset, split="train")
    except Exception as error:  # offline, private, misspelt: the hub client has a class for each
        raise UserError(
            f"data set '{dataset}' is neither 'facts', nor a local file, nor a hub data set that can be reached "
            f"({first_line(error)})."
        ) from error
