"""The shards of a finished negative set: their names, and reading them (`data.set_writer` writes them)."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.command.errors import UserError
from data.manifest import ShardRecord, read_manifest
from data.schema import Group, Reject, group_from_row, group_schema, reject_schema, schema_differences
from data.storage import Folder, parquet_table, sha256

REJECTS = "rejects.parquet"


def shard_name(index: int) -> str:
    """File name of a shard, e.g. shard-00042.parquet."""
    return f"shard-{index:05d}.parquet"


class NegativeSet:
    """A finished negative set, opened for reading.

    Args:
        path: directory or URL.
        current: take no set of an older schema version.

    Raises:
        UserError: no finished negative set that can be read is there, or a shard is missing.
    """

    def __init__(self, path: str, *, current: bool = False):
        self.folder = Folder(path)
        self.manifest = read_manifest(self.folder, current=current)
        self.signals = self.manifest.signals
        self._sound: set[int] = set()
        names = self.folder.names()
        for shard in self.manifest.shards:
            if shard.file not in names:
                raise self._lacks(shard.file)

    def __len__(self) -> int:
        return self.manifest.counts["rows_written"]

    def check_reference(self, weights_sha256: str, model: str) -> None:
        """Refuse a model that is not the reference: its stored log-probabilities would be wrong."""
        expected = self.manifest.job["model"]
        if expected["weights_sha256"] != weights_sha256:
            raise UserError(
                f"negative set '{self.folder.path}' was made with reference model '{expected['name']}' (weights "
                f"{expected['weights_sha256'][:16]}), but --model '{model}' has weights {weights_sha256[:16]}. Start "
                "from the reference model, or generate a set with this one."
            )

    def check_tokenizer(self, tokenizer_sha256: str, model: str) -> None:
        """Refuse another tokenizer: the stored ids would mean other text."""
        expected = self.manifest.job["tokenizer"]["sha256"]
        if expected != tokenizer_sha256:
            raise UserError(
                f"negative set '{self.folder.path}' was made with tokenizer {expected[:16]}, but '{model}' has "
                f"tokenizer {tokenizer_sha256[:16]}. Use the reference model's tokenizer, or generate a set with this."
            )

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The groups of one shard after another, checksums verified. Raises UserError if a shard is damaged."""
        for shard in self.manifest.shards:
            yield self._read(shard, columns)

    def groups(self) -> Iterator[Group]:
        """Every group, shard by shard."""
        for table in self.tables():
            yield from map(group_from_row, table.to_pylist())

    def shard(self, index: int) -> list[Group]:
        """The groups of one shard. Raises UserError if it is damaged."""
        return [group_from_row(row) for row in self._read(self.manifest.shards[index], None).to_pylist()]

    def shard_table(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a shard by their paths in Parquet, such as "negatives.list.element.ids".

        The checksum is verified the first time that this object reads the shard; later only those columns are read.

        Raises:
            UserError: the shard is missing or damaged.
        """
        shard = self.manifest.shards[index]
        if index not in self._sound:
            source: Any = BytesIO(self._verified(shard.file, shard.sha256))
            self._sound.add(index)
        else:
            source = self.folder.open(shard.file)
        with source, pq.ParquetFile(source, pre_buffer=True) as file:  # few requests for many columns
            self._check_columns(shard.file, file.schema_arrow)
            return file.read(columns=list(columns))

    def peek(self, index: int, column: str) -> pa.ChunkedArray:
        """One column of a shard, without reading the rest of it, so without verifying its checksum.

        For what must be known before anything is used: whatever is used later goes through `shard_table`.

        Raises:
            UserError: the shard is missing, or damaged so that the column cannot be read.
        """
        shard = self.manifest.shards[index]
        try:
            with self.folder.open(shard.file) as source, pq.ParquetFile(source) as file:
                return file.read(columns=[column]).column(column)
        except FileNotFoundError:
            raise self._lacks(shard.file) from None
        except Exception:  # pyarrow and a store's client have errors of many kinds; reading the whole says which it is
            self._verified(shard.file, shard.sha256)
            raise

    def rejects(self) -> list[Reject]:
        """Every rejected row with its reason. Raises UserError if their file is missing or damaged."""
        content = self._verified(REJECTS, self.manifest.rejects["sha256"])
        table = parquet_table(content)
        self._check_columns(REJECTS, table.schema)
        return [Reject(**row) for row in table.to_pylist()]

    def _read(self, shard: ShardRecord, columns: Sequence[str] | None) -> pa.Table:
        with pq.ParquetFile(BytesIO(self._verified(shard.file, shard.sha256))) as file:
            self._check_columns(shard.file, file.schema_arrow)
            return file.read(columns=list(columns) if columns is not None else None)

    def _check_columns(self, file: str, found: pa.Schema) -> None:
        version = self.manifest.schema_version
        expected = reject_schema(version) if file == REJECTS else group_schema(self.signals, version)
        if differences := schema_differences(found, expected):
            raise UserError(
                f"{file} of negative set '{self.folder.path}' has not the columns of schema version {version}: "
                f"{differences[0]}. Generate the set again."
            )

    def _verified(self, file: str, expected: str) -> bytes:
        try:
            content = self.folder.read(file)
        except FileNotFoundError:
            raise self._lacks(file) from None
        if sha256(content) != expected:
            raise UserError(
                f"{file} of negative set '{self.folder.path}' is damaged: its SHA-256 is {sha256(content)[:16]}, the "
                f"manifest says {expected[:16]}. Restore it, or generate the set again."
            )
        return content

    def _lacks(self, file: str) -> UserError:
        return UserError(f"negative set '{self.folder.path}' lacks {file}. Restore it, or generate the set again.")
