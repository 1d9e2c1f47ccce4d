"""Parquet files of others, opened within a stated bound of memory.

A file of a kilobyte can hold a value of a megabyte, stored once, a million times. So before anything is decoded, a file
is refused whose values would take more than MOST_BYTES by what its footer declares, and texts by what they are: where
the footer leaves room for more, the lengths of the distinct texts are read, which takes no more than the declared size
and four bytes a text.
A reader holds at most the file, and twice MOST_BYTES while it converts. What a footer conceals is found by the decoder,
page by page, and Parquet has no page of more than 2 GiB.

`require_readable` is for a data source, which may be larger than that: it is read row group by row group, so each of
these has the bound.

Nothing here reads on Arrow's threads, so neither by `pq.read_table` nor with `pre_buffer`: a thread that still holds a
Python file when the interpreter ends aborts the process now and then (pyarrow 26).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.command.errors import UserError, first_line

MOST_BYTES = 8 << 30
# Bytes of a value of fixed length; of each text, null or not, at least where it ends.
TEXT_WIDTH = 4
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}


class Unreadable(ValueError):
    """Bytes that are no Parquet file, or one that is too large; the message says which."""


@contextmanager
def parquet_file(source: BinaryIO, *, known: bool = False) -> Iterator[pq.ParquetFile]:
    """A Parquet file, opened for reading.

    Args:
        source: closed at the end.
        known: whether it has been opened here before, so that its size is not looked at again.

    Raises:
        Unreadable: the source is no Parquet file, damaged, or declares values of more than MOST_BYTES; also where
            the block reads what cannot be read.
    """
    try:
        with source, pq.ParquetFile(source, pre_buffer=False) as file:
            if not known:
                _refuse_too_large(file.metadata, source, range(file.metadata.num_row_groups))
            yield file
    except (UserError, Unreadable, FileNotFoundError):
        raise
    except Exception as error:  # pyarrow has errors of many kinds, not all its own
        raise Unreadable(first_line(error)) from error


def read_parquet(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a file's bytes. Raises Unreadable, see `parquet_file`."""
    with parquet_file(BytesIO(content)) as file:
        return read_columns(file, columns)


def read_columns(file: pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
    """Columns of an open file by their paths in Parquet; None: all of them."""
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


def require_readable(source: BinaryIO) -> int:
    """The rows of a Parquet file. Raises Unreadable if a row group would take more than MOST_BYTES, or it is none."""
    try:
        with source, pq.ParquetFile(source, pre_buffer=False) as file:
            for group in range(file.metadata.num_row_groups):
                _refuse_too_large(file.metadata, source, [group])
            return file.metadata.num_rows
    except Unreadable:
        raise
    except Exception as error:  # as in `parquet_file`
        raise Unreadable(first_line(error)) from error


def _refuse_too_large(metadata: Any, source: BinaryIO, groups: Sequence[int]) -> None:
    total = 0
    for path, (kind, values, size) in _columns(metadata, groups).items():
        most = max(size, values * WIDTHS.get(kind, TEXT_WIDTH))
        if kind not in WIDTHS and total + most <= MOST_BYTES < values * size:
            most = max(size, values * TEXT_WIDTH + _bytes_of_texts(source, path, groups))
        total += most
        if total > MOST_BYTES:
            raise Unreadable(f"its values would take more than {MOST_BYTES / (1 << 30):.3g} GiB of memory")


def _columns(metadata: Any, groups: Sequence[int]) -> dict[str, tuple[str, int, int]]:
    """Path of every column -> physical type, number of values, size in bytes as declared."""
    found: dict[str, tuple[str, int, int]] = {}
    for group in groups:
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            chunk = row_group.column(index)
            _, values, size = found.get(chunk.path_in_schema, ("", 0, 0))
            found[chunk.path_in_schema] = (
                chunk.physical_type,
                values + max(0, chunk.num_values),
                size + max(0, chunk.total_uncompressed_size),
            )
    return found


def _bytes_of_texts(source: BinaryIO, path: str, groups: Sequence[int]) -> int:
    """What the texts of a column take, by the lengths of the distinct ones."""
    file = pq.ParquetFile(source, read_dictionary=[path], pre_buffer=False)
    column = file.read_row_groups(list(groups), columns=[path], use_threads=False).column(0)
    return sum(map(_length, column.chunks))


def _length(array: Any) -> int:
    kind = array.type
    if pa.types.is_list(kind):
        return _length(array.flatten())
    if pa.types.is_struct(kind):
        return sum(map(_length, array.flatten()))
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(array.dictionary)  # type: ignore[attr-defined]  # made at run time
        return pc.sum(lengths.cast(pa.int64()).take(array.indices)).as_py() or 0  # type: ignore[attr-defined]  # so too
    return array.nbytes
