"""Rows of a data source: of a table on disk, by number, or of a stream, one after another."""

import contextlib
import csv
import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data.command.errors import UserError, first_line
from data.shape import parse_json
from data.sources import enquiries, facts
from data.sources.data_files import LINES, local_files
from data.sources.file_columns import require_same_columns
from data.sources.json_lines import BYTES, Unreadable, parse_line
from data.sources.row_paths import Path as Place
from data.sources.source_name import SourceName

# Embedded examples, by the names that --dataset takes.
EMBEDDED: dict[str, Callable[[], list[dict[str, str]]]] = {"facts": facts.examples, "enquiries": enquiries.examples}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The rows of a data source. A row is a dict, an Unreadable, or None for a blank line, which counts as no row.

    Attributes:
        source: a list, a `datasets.Dataset` or a `datasets.IterableDataset`.
        are_lines: whether its rows are lines of JSON.
        explain: makes a UserError of what breaks while a stream is read.
        split: what the source calls them, if it has splits.
    """

    source: Any
    are_lines: bool = False
    explain: Callable[[Exception], UserError] | None = None
    split: str = ""

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


class Part(NamedTuple):
    """Rows of one source: all there are, or those of train and then those of test where they are apart.

    Attributes:
        is_own_test: whether they are the test split of a source whose train split is read too.
    """

    dataset: str
    rows: Rows
    is_own_test: bool = False


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
        dataset: one of EMBEDDED; a local file, a glob (`part-*.jsonl.gz`) or a folder of files of one format; a data
            set that `datasets.save_to_disk` saved; or a hub id, see `SourceName`. Of a folder, files with `train` and
            with `test` in their names are splits, as those of a hub or saved set are; `validation` stands for a `test`
            that there is not. Of a split that is named all rows are "train".
        needed, optional: the places that are needed, and those that are used if they are there; other columns may be
            left unread.
        streaming: read without a copy on disk (compressed files are unpacked); the rows can then be iterated over only.

    Raises:
        UserError: the source is missing, unreadable or empty. Of a stream, also while it is iterated over.
    """
    name = SourceName.of(dataset)
    if dataset in EMBEDDED:
        return {"train": Rows(EMBEDDED[dataset]())}
    files = local_files(name.where, name.split)
    explain: Callable[[Exception], UserError] = functools.partial(_unreachable, dataset)
    try:
        with _quiet("datasets"):  # it says why a file cannot be read two times before it raises that
            if files is None:
                found = _splits(_load_from_hub(name, streaming), dataset, name)
            elif files.saved:
                explain = functools.partial(_unreadable_folder, dataset)
                found = _splits(_load_saved(files.saved, streaming), dataset, name)
            else:
                explain = functools.partial(_unreadable_file, dataset, files.format)
                of_splits = {half: some for half, some in (("train", files.train), ("test", files.test)) if some}
                found = {
                    half: (half, _load_files(some, files.format, needed, optional, streaming))
                    for half, some in of_splits.items()
                }
    except UserError:
        raise
    except Exception as error:
        raise explain(error) from error
    are_lines = files is not None and files.format == LINES
    opened = {}
    for half, (split, rows) in found.items():
        names: Any = rows.column_names or ()  # not every stream knows them
        if not are_lines and (read := _columns_of(names, needed, optional)):
            rows = rows.select_columns(read)
        opened[half] = Rows(rows, are_lines, explain if streaming else None, split)
    return opened


def _columns_of(names: Collection[str], needed: Sequence[Place], optional: Sequence[Place]) -> list[str]:
    """The columns of a table that are read; none where a needed one is not there."""
    if not all(place.column(names) in names for place in needed):
        return []
    columns = dict.fromkeys(place.column(names) for place in (*needed, *optional))
    return [column for column in columns if column in names]


def _load_from_hub(name: SourceName, streaming: bool) -> Any:
    from datasets import load_dataset

    return load_dataset(name.where, name.config, streaming=streaming)


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
    from datasets.exceptions import DatasetGenerationError

    names = [str(path.resolve()) for path in files]
    if kind == LINES:
        return load_dataset("text", data_files=names, split="train", streaming=streaming, encoding=BYTES)
    options = _csv_options(files, needed, optional) if kind == "csv" else {}
    if kind == "parquet":
        require_same_columns(files)
    try:
        return load_dataset(kind, data_files=names, split="train", streaming=streaming, **options)
    except DatasetGenerationError:
        if kind == "json":
            require_same_columns(files)  # which takes reading them a second time
        raise


def _splits(found: Any, dataset: str, name: SourceName) -> dict[str, tuple[str, Any]]:
    """Train and test, each with the source's own name for it; the log names the splits that are not read.

    Of a source whose split was named that one is all there is.
    """
    splits: dict[str, Any] = found if isinstance(found, dict) else {}
    if name.split is not None:
        if name.split not in splits:
            has = ", ".join(splits) or "none"
            raise UserError(f"data set '{dataset}': there is no split '{name.split}'; it has {has}. Correct the name.")
        return {"train": (name.split, splits[name.split])}
    if not splits:
        return {"train": ("", found)}
    test = "test" if "test" in splits else "validation"
    chosen = {half: (own, splits[own]) for half, own in (("train", "train"), ("test", test)) if own in splits}
    if not chosen:
        ours, theirs = (next((own for own in splits if word in own), None) for word in ("train", "test"))
        named = f"--dataset {dataset}:{ours or next(iter(splits))}" + (
            f" and what is held out as --test_dataset {dataset}:{theirs}" if theirs and ours else ""
        )
        raise UserError(
            f"data set '{dataset}' has neither a split 'train' nor 'test'; it has {', '.join(splits)}. Name the one "
            f"that you mean: {named}."
        )
    if test != "test" and test in splits:
        log.info("data set '%s': its split '%s' stands for the test split", dataset, test)
    if others := [str(own) for own in splits if own not in ("train", test)]:
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
    try:
        headers = require_same_columns(files)
    except UserError:
        raise
    except (ValueError, csv.Error):  # `datasets` will say what is wrong with the file
        return options
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
    said = str(error).splitlines()
    if len(said) > 1 and said[0] == "Config name is missing.":
        configs = said[1].partition(": ")[2]
        named = dataclasses.replace(SourceName.of(dataset), config="NAME").located(str)
        return UserError(f"data set '{dataset}' has several configurations: {configs}. Name one: '{named}'.")
    return UserError(
        f"data set '{dataset}' is neither {' nor '.join(map(repr, EMBEDDED))}, nor a local file, nor a hub data set "
        f"that can be reached ({first_line(error)})."
    )
