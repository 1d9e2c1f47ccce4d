"""Rows of a data source: of a table on disk, by number, or of a stream, one after another."""

import contextlib
import csv
import functools
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.command.errors import UserError, first_line
from data.shape import parse_json
from data.sources import facts
from data.sources.data_files import LINES, local_files
from data.sources.json_lines import BYTES, Unreadable, parse_line
from data.sources.row_paths import Path as Place

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Joined:
    """Rows of several sources, numbered through."""

    parts: Sequence[Rows]

    def fetch(self, numbers: Sequence[int]) -> list[Any]:
        """The rows with these numbers."""
        rows: dict[int, Any] = {}
        start = 0
        for part in self.parts:
            mine = [number for number in numbers if start <= number < start + len(part)]
            rows.update(zip(mine, part.fetch([number - start for number in mine]) if mine else [], strict=True))
            start += len(part)
        return [rows[number] for number in numbers]


def open_rows(
    dataset: str, needed: Sequence[Place], optional: Sequence[Place] = (), streaming: bool = False
) -> dict[str, Rows]:
    """The rows of a data source: "train", and "test" where it keeps such rows apart; never neither.

    Args:
        dataset: `facts`; a local file, a glob (`part-*.jsonl.gz`) or a folder of files of one format; a data set that
            `datasets.save_to_disk` saved; or a hub id. Of a folder, files with `train` and with `test` in their names
            are splits, as those of a hub or saved set are; `validation` stands for a `test` that there is not.
        needed, optional: the places that are needed, and those that are used if they are there; other columns may be
            left unread.
        streaming: read without a copy on disk (compressed files are unpacked); the rows can then be iterated over only.

    Raises:
        UserError: the source is missing, unreadable or empty. Of a stream, also while it is iterated over.
    """
    if dataset == "facts":
        return {"train": Rows(facts.examples())}
    files = local_files(dataset)
    explain: Callable[[Exception], UserError] = functools.partial(_unreachable, dataset)
    try:
        with _quiet("datasets"):  # it says why a file cannot be read two times before it raises that
            if files is None:
                found = _splits(_load_from_hub(dataset, streaming), dataset)
            elif files.saved:
                explain = functools.partial(_unreadable_folder, dataset)
                found = _splits(_load_saved(files.saved, streaming), dataset)
            else:
                explain = functools.partial(_unreadable_file, dataset, files.format)
                of_splits = {name: some for name, some in (("train", files.train), ("test", files.test)) if some}
                found = {
                    name: _load_files(some, files.format, needed, optional, streaming)
                    for name, some in of_splits.items()
                }
    except UserError:
        raise
    except Exception as error:
        raise explain(error) from error
    are_lines = files is not None and files.format == LINES
    opened = {}
    for name, rows in found.items():
        names: Any = rows.column_names or ()  # not every stream knows them
        if not are_lines and (read := _columns_of(names, needed, optional)):
            rows = rows.select_columns(read)
        opened[name] = Rows(rows, are_lines, explain if streaming else None)
    return opened


def _columns_of(names: Collection[str], needed: Sequence[Place], optional: Sequence[Place]) -> list[str]:
    """The columns of a table that are read; none where a needed one is not there."""
    if not all(place.column(names) in names for place in needed):
        return []
    columns = dict.fromkeys(place.column(names) for place in (*needed, *optional))
    return [column for column in columns if column in names]


def _load_from_hub(dataset: str, streaming: bool) -> Any:
    from datasets import load_dataset

    return load_dataset(dataset, streaming=streaming)


def _load_saved(folder: str, streaming: bool) -> Any:
    whole, of_splits = Path(folder), Path(folder, "dataset_dict.json")
    places = {"train": whole}
    if of_splits.is_file():
        places = {name: whole / name for name in parse_json(of_splits.read_bytes())["splits"]}
    parts = {name: _load_saved_part(place) for name, place in places.items()}
    return {name: rows.to_iterable_dataset() if streaming and len(rows) else rows for name, rows in parts.items()}


def _load_saved_part(folder: Path) -> Any:
    """Rows of one split; of one that was saved without any, which `datasets` cannot load, none."""
    from datasets import Dataset, load_from_disk

    files = parse_json((folder / "state.json").read_bytes())["_data_files"]
    return load_from_disk(str(folder)) if files else Dataset.from_dict({})


def _load_files(
    files: Sequence[Path], kind: str, needed: Sequence[Place], optional: Sequence[Place], streaming: bool
) -> Any:
    from datasets import load_dataset

    names = [str(path.resolve()) for path in files]
    if kind == LINES:
        return load_dataset("text", data_files=names, split="train", streaming=streaming, encoding=BYTES)
    options = _csv_options(files, needed, optional) if kind == "csv" else {}
    return load_dataset(kind, data_files=names, split="train", streaming=streaming, **options)


def _splits(found: Any, dataset: str) -> dict[str, Any]:
    """Train and test of a set of several splits; the log names those that are not read."""
    if not isinstance(found, dict):
        return {"train": found}
    test = "test" if "test" in found else "validation"
    chosen = {half: found[name] for half, name in (("train", "train"), ("test", test)) if name in found}
    if not chosen:
        raise UserError(
            f"data set '{dataset}' has neither a split 'train' nor 'test'; it has {', '.join(found)}. Save the one "
            "that you mean by datasets.save_to_disk and give its folder, or give its files by a glob."
        )
    if test != "test" and test in found:
        log.info("data set '%s': its split '%s' stands for the test split", dataset, test)
    if others := [str(name) for name in found if name not in ("train", test)]:
        log.warning("data set '%s': splits that are not read: %s", dataset, ", ".join(others))
    return chosen


@contextlib.contextmanager
def _quiet(library: str) -> Iterator[None]:
    its_log = logging.getLogger(library)
    before = its_log.level
    its_log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        its_log.setLevel(before)


def _csv_options(files: Sequence[Path], needed: Sequence[Place], optional: Sequence[Place]) -> dict[str, Any]:
    """In a table of texts, 'None', 'N/A', '7' and an empty cell are texts too. Raises UserError if tables differ."""
    from datasets import Features, Value

    options: dict[str, Any] = {"keep_default_na": False}
    headers = []
    try:
        for path in files:
            with path.open(encoding="utf-8-sig", newline="") as file:
                headers.append(next(csv.reader(file), []))
    except (ValueError, csv.Error):  # `datasets` will say what is wrong with the file
        return options
    if other := next((place for place, header in enumerate(headers) if header != headers[0]), 0):
        raise UserError(f"'{files[0].name}' and '{files[other].name}' have different columns. Give files of one kind.")
    if found := _columns_of(headers[0], needed, optional):
        options["features"] = Features({column: Value("string") for column in found})
    return options


def _unreadable_file(dataset: str, kind: str, error: Exception) -> UserError:
    reason = first_line(error.__cause__ or error)  # datasets wraps whatever the parser of the format raised
    if "corresponds to no data" in reason:  # a file with a header, brackets or blank lines only
        return UserError(f"data set '{dataset}' has no rows.")
    return UserError(f"cannot read '{dataset}' as {'jsonl' if kind == LINES else kind}: {reason}")


def _unreadable_folder(dataset: str, error: Exception) -> UserError:
    return UserError(f"cannot read '{dataset}' as a data set that was saved: {first_line(error)}. Save it again.")


def _unreachable(dataset: str, error: Exception) -> UserError:
    """The error of a data set that is offline, private, misspelt or lost: the hub client has a class for each."""
    return UserError(
        f"data set '{dataset}' is neither 'facts', nor a local file, nor a hub data set that can be reached "
        f"({first_line(error)})."
    )
