"""Rows of a data source: of a table on disk, by number, or of a stream, one after another.

JSON Lines are read as lines of text and parsed one by one, so that a broken line or a column of mixed types costs that
line, not the file. The lines travel as Latin-1, which holds any bytes, and are decoded one by one for the same reason.
"""

import csv
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.command.errors import UserError, first_line
from data.shape import parse_json
from data.sources import facts

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
BYTES = "latin-1"


@dataclass(frozen=True)
class Unreadable:
    """What should have been a row and is none.

    Attributes:
        text: of the line, or which row it is.
        reason, detail: as in `data.schema.Reject`.
    """

    text: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Rows:
    """The rows of a data source. A row is a dict, an Unreadable, or None for a blank line, which counts as no row.

    Attributes:
        source: a list, a `datasets.Dataset` or a `datasets.IterableDataset`.
        are_lines: whether its rows are lines of JSON.
        explain: makes a UserError of what breaks while a stream is read.
    """

    source: Any
    are_lines: bool = False
    explain: Callable[[Exception], UserError] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Any]:
        try:
            for row in self.source:
                yield self._parsed(row)
        except Exception as error:
            if self.explain is None:
                raise
            raise self.explain(error) from error

    def fetch(self, numbers: Sequence[int]) -> list[Any]:
        """The rows with these numbers; not of a stream."""
        if isinstance(self.source, list):
            return [self.source[number] for number in numbers]
        try:
            columns = self.source[numbers]
        except UnicodeDecodeError as error:  # a Parquet file may hold any bytes as text
            if len(numbers) > 1:
                return [row for number in numbers for row in self.fetch([number])]
            return [Unreadable(f"row {numbers[0]}", "not UTF-8", error.reason)]
        return [self._parsed(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]

    def _parsed(self, row: Any) -> Any:
        return parse_line(row["text"]) if self.are_lines else row


def parse_line(line: str) -> Any:
    """The row in a line of JSON that was read as Latin-1: a dict, an Unreadable, or None if it is blank."""
    if not line.strip():
        return None
    try:
        text = line.encode(BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Unreadable(line, "not UTF-8", error.reason)
    try:
        row = parse_json(text)
    except ValueError as error:  # also a number of too many digits
        return Unreadable(text, "not JSON", first_line(error))
    return row if isinstance(row, dict) else Unreadable(text, "not a JSON object", f"it is {type(row).__name__}")


def read_rows(dataset: str, columns: Sequence[str], optional: Sequence[str] = (), streaming: bool = False) -> Rows:
    """The rows of a data source.

    Args:
        dataset: `facts`, a local file or a hub id.
        columns, optional: the columns that are needed, and those that are used if they are there; others may be left
            unread.
        streaming: read without a copy on disk; the rows can then be iterated over only.

    Raises:
        UserError: the source is missing, unreadable or empty. Of a stream, also while it is iterated over.
    """
    if dataset == "facts":
        return Rows(facts.examples())
    path = Path(os.path.expanduser(dataset))
    looks_local = path.suffix in READERS or path.is_absolute() or dataset.startswith((".", "~"))
    if looks_local or path.exists():
        _check_file(path, dataset)
        are_lines = path.suffix == ".jsonl" or (path.suffix == ".json" and _starts_with_an_object(path))
        explain = functools.partial(_unreadable_file, dataset, path)
    else:
        are_lines, explain = False, functools.partial(_unreachable, dataset)
    from datasets import load_dataset

    its_log = logging.getLogger("datasets")
    before = its_log.level
    its_log.setLevel(logging.CRITICAL)  # it says why a file cannot be read two times before it raises that
    try:
        if are_lines:
            rows = load_dataset(
                "text", data_files=str(path.resolve()), split="train", streaming=streaming, encoding=BYTES
            )
        elif looks_local or path.exists():
            options = _csv_options(path, columns, optional) if path.suffix == ".csv" else {}
            reader = READERS[path.suffix]
            rows = load_dataset(reader, data_files=str(path.resolve()), split="train", streaming=streaming, **options)
        else:
            rows = load_dataset(dataset, split="train", streaming=streaming)
    except Exception as error:
        raise explain(error) from error
    finally:
        its_log.setLevel(before)
    names: Any = rows.column_names or ()  # not every stream knows them
    if not are_lines and all(column in names for column in columns):
        rows = rows.select_columns([column for column in (*columns, *optional) if column in names])
    return Rows(rows, are_lines, explain if streaming else None)


def _check_file(path: Path, dataset: str) -> None:
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
    if path.suffix == ".parquet":
        from data import parquet  # takes what a command that only prints its help has no time for

        try:
            rows = parquet.require_readable(path.open("rb"))
        except parquet.Unreadable as error:
            raise _unreadable_file(dataset, path, error) from error
        if not rows:
            raise UserError(f"data set '{dataset}' has no rows.")


def _starts_with_an_object(path: Path) -> bool:
    """Whether the first line that is not blank is a JSON object of its own: JSON Lines under the name .json."""
    with path.open(encoding=BYTES) as lines:
        return isinstance(next((row for row in map(parse_line, lines) if row is not None), None), dict)


def _csv_options(path: Path, columns: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    """In a table of texts, 'None', 'N/A', '7' and an empty cell are texts too."""
    from datasets import Features, Value

    options: dict[str, Any] = {"keep_default_na": False}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), [])
    except (ValueError, csv.Error):  # `datasets` will say what is wrong with the file
        return options
    if all(column in header for column in columns):
        found = [column for column in (*columns, *optional) if column in header]
        options["features"] = Features({column: Value("string") for column in found})
    return options


def _unreadable_file(dataset: str, path: Path, error: Exception) -> UserError:
    reason = first_line(error.__cause__ or error)  # datasets wraps whatever the parser of the format raised
    if "corresponds to no data" in reason:  # a file with a header, brackets or blank lines only
        return UserError(f"data set '{dataset}' has no rows.")
    return UserError(f"cannot read '{dataset}' as {path.suffix[1:]}: {reason}")


def _unreachable(dataset: str, error: Exception) -> UserError:
    """The error of a data set that is offline, private, misspelt or lost: the hub client has a class for each."""
    return UserError(
        f"data set '{dataset}' is neither 'facts', nor a local file, nor a hub data set that can be reached "
        f"({first_line(error)})."
    )
