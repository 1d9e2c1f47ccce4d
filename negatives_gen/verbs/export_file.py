"""The file that an export writes: where, whether one that is there is its own, and what stands beside it."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.command.errors import UserError
from data.command.options import resolve_path
from data.parquet import parquet_file
from data.places import place_of
from data.shape import parse_json
from data.shards import NegativeSet
from data.storage import TEMPORARY_PREFIX, Folder, new_file
from negatives_gen.verbs.export_rows import REJECTED, Form, Row, said

# What llama-factory's loader looks for beside the file.
DATASET_INFO = "dataset_info.json"
SUFFIXES = (".jsonl", ".parquet")


def export_place(out: str, split: str) -> tuple[Folder, str]:
    """The folder and the file's name in it. Raises UserError for a place that cannot be one."""
    path = resolve_path(out)
    suffix = Path(path).suffix
    if out.endswith("/") or not suffix or os.path.isdir(path):
        path = f"{path.rstrip('/')}/{split}.jsonl"
    elif suffix not in SUFFIXES:
        raise UserError(f"--out '{out}' must end in {' or '.join(SUFFIXES)}, or in / for a folder.")
    return place_of(path, "--out", f"{split}.jsonl")


def is_export_of(negatives: NegativeSet, form: Form, columns: pa.Schema, name: str, content: bytes) -> bool:
    """Whether a file is one that an export of this set in this form wrote, by what each of its rows has of a group."""
    try:
        rows = list(_rows(name, content))
    except ValueError:  # of another format, or damaged
        return False
    if not rows or not all(isinstance(row, dict) and list(row) == columns.names for row in rows):
        return False
    groups = (group for index in range(len(negatives.manifest.shards)) for group in negatives.shard(index))
    written = {_of_group(form(*said(group, None))) for group in groups}
    return all(_of_group(row) in written for row in rows)


def _of_group(row: Row) -> str:
    """What a row has of its group, whichever of the group's negatives it is about, as one text."""
    return json.dumps({column: value for column, value in row.items() if column != REJECTED}, sort_keys=True)


def _rows(name: str, content: bytes) -> Iterator[Any]:
    """The rows of a file. Raises ValueError."""
    if not name.endswith(".parquet"):
        yield from map(parse_json, content.splitlines())
        return
    with parquet_file(BytesIO(content)) as file:
        for batch in file.iter_batches(batch_size=1000, use_threads=False):
            yield from batch.to_pylist()


def dataset_info(folder: Folder, name: str, kind: dict[str, Any]) -> bytes:
    """The dataset_info.json with an entry for our file, beside the entries that are there already.

    Raises:
        UserError: the one that is there is damaged, or has another data set of that name.
    """
    entries: Any = {}
    if DATASET_INFO in folder.names():
        content = folder.read_if_there(DATASET_INFO)
        try:
            entries = parse_json(content or b"")
        except ValueError:
            entries = None
        if not isinstance(entries, dict):
            raise UserError(f"'{folder / DATASET_INFO}' is no JSON object. Move it away, or choose another --out.")
    entry, stem = {"file_name": name, "ranking": True, **kind}, Path(name).stem
    if entries.get(stem, entry) != entry:
        raise UserError(
            f"'{folder / DATASET_INFO}' has another data set '{stem}' already. Choose another name for --out."
        )
    entries[stem] = entry
    # A lone surrogate, which other entries may hold as an escape, becomes one again.
    return (json.dumps(entries, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


@contextmanager
def rows_writer(folder: Folder, name: str, schema: pa.Schema) -> Iterator[Callable[[list[Row]], None]]:
    """Takes rows part by part; the file appears whole when the block ends well, else not at all.

    Raises:
        UserError: the place cannot be written.
    """
    try:
        if folder.is_local:
            Path(folder.root).mkdir(parents=True, exist_ok=True)
        handle, temporary = new_file(folder.root) if folder.is_local else tempfile.mkstemp(prefix=TEMPORARY_PREFIX)
        try:
            with os.fdopen(handle, "wb") as file:
                if name.endswith(".parquet"):
                    with pq.ParquetWriter(file, schema, compression="zstd") as parquet:

                        def write_rows(rows: list[Row]) -> None:
                            if rows:  # `datasets` cannot read a row group without rows
                                parquet.write_table(pa.Table.from_pylist(rows, schema=schema))

                        yield write_rows
                else:
                    yield lambda rows: file.writelines(
                        (json.dumps(r, ensure_ascii=False) + "\n").encode() for r in rows
                    )
                file.flush()
                os.fsync(file.fileno())
            if folder.is_local:
                os.replace(temporary, folder / name)
            else:
                folder.upload(temporary, name)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write '{folder / name}': {error.strerror or error}. Check path, permissions and free space."
        ) from error
