"""Reading the shards of a finished negative set (`data.set_writer` writes them)."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data.command.errors import UserError, did_you_mean, first_line
from data.command.privacy import scrub
from data.command.wording import counted
from data.manifest import REJECTS, read_manifest
from data.model_settings import config_hash
from data.parquet import Unreadable, parquet_file, read_columns
from data.schema import (
    NULLABLE,
    NULLABLE_IN_REJECTS,
    SCORES,
    Group,
    Reject,
    group_from_row,
    group_schema,
    reject_schema,
    schema_differences,
)
from data.soundness import id_problems, length_problems, null_problems, score_problems, unreadable
from data.storage import Folder, sha256

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

log = logging.getLogger(__name__)

LENDS = (
    "bn borrowed from both halves (train, test) before 0.7: training pushes held-out truths down, and held-out groups "
    "hold truths that training raises. Make the set again"
)
# What the lengths of a group's sequences are read from.
SEQUENCES = "id", "prompt_ids", "response_ids", "negatives.list.element.ids"


def warn_of_lending(negatives: "NegativeSet") -> None:
    """Say of a set of before 0.7 that its halves are not apart."""
    if negatives.manifest.lends_across_halves:
        log.warning("negative set '%s': its %s.", scrub(negatives.folder.path), LENDS)


class NegativeSet:
    """A finished negative set, opened for reading: `from data import NegativeSet`.

    `len` is its number of groups, and iterating gives them as `data.schema.Group`, one shard in memory at a time.

    Args:
        path: directory or URL.
        current: take no set of schema version 2, which lacks what a person asked.

    A shard is checked when it is first read: its checksum, its columns, and what no reader could work with (see
    `data.soundness`); what memory that takes at most, `data.parquet` says.

    Attributes:
        computes: whether shards are refused that cannot be computed with, see `compute_with`.
        vocabulary: number of token ids of the model that reads the set, where that is known.
        context: tokens of its longest sequence, likewise.
        truths_only: whether it is given no negatives.

    Raises:
        UserError: no finished negative set that can be read is there, or a shard is missing.
    """

    computes = False
    vocabulary: int | None = None
    context: int | None = None
    truths_only = False

    def __init__(self, path: str, *, current: bool = False):
        self.folder = Folder(path)
        self.manifest = read_manifest(self.folder, current=current)
        self.signals = self.manifest.signals
        self._sound: set[tuple[int, tuple[str, ...] | None]] = set()
        names = self.folder.names()
        for shard in self.manifest.shards:
            if shard.file not in names:
                raise self._lacks(shard.file)

    @property
    def summary(self) -> str:
        """Where the set lies, how many groups it has and what they were made from, in words."""
        return f"negative set '{scrub(self.folder.path)}': {counted(len(self), 'group')} from {self.manifest.origin}"

    @property
    def knows_support(self) -> bool:
        """Whether the groups have a column `in_support`; what stands in it may be null."""
        return "in_support" in group_schema(self.signals, self.manifest.schema_version).names

    def __len__(self) -> int:
        return self.manifest.counts["rows_written"]

    def __iter__(self) -> Iterator[Group]:
        return self.groups()

    def compute_with(self, vocabulary: int | None, context: int | None = None, *, truths_only: bool = False) -> None:
        """Refuse, whenever a shard is read, one that lacks scores, or holds numbers that are not finite, sequences
        without tokens, or what `give_to` says."""
        self.computes = True
        self.give_to(vocabulary, context, truths_only=truths_only)

    def give_to(self, vocabulary: int | None, context: int | None, *, truths_only: bool = False) -> None:
        """Refuse, whenever a shard is read, ids and sequences that a model does not take.

        Where the set was made for a longer context than the model's, all its shards are read now.

        Args:
            vocabulary: ids from this number on are refused; None: not known.
            context: so many tokens a prompt may have together with a continuation; None: not known.
            truths_only: whether the model is given no negatives.

        Raises:
            UserError: a sequence is too long, where that is looked at now.
        """
        self.vocabulary, self.context, self.truths_only = vocabulary, context, truths_only
        made_for = self.manifest.job.get("data", {}).get("context")
        if context is not None and isinstance(made_for, int) and made_for > context:
            for _ in self.tables(SEQUENCES):
                pass

    def check_reference(self, weights_sha256: str, model: str, earlier: Callable[[], str] | None = None) -> None:
        """Refuse a model that is not the reference: its stored log-probabilities would be wrong.

        Args:
            weights_sha256: of the model, which is named for the error.
            earlier: gives the hash that sets from before 0.6 have of it, `data.models.hash_of_all_weights`.
        """
        expected = self.manifest.job["model"]
        same = expected["weights_sha256"] == weights_sha256
        if not same and (earlier is None or earlier() != expected["weights_sha256"]):
            raise UserError(
                f"negative set '{self.folder.path}' was made with reference model '{expected['name']}' (weights "
                f"{expected['weights_sha256'][:16]}), but --model '{model}' has weights {weights_sha256[:16]}. Start "
                "from the reference model, or generate a set with this one."
            )

    def check_config(self, directory: Path, model: str) -> None:
        """Refuse another config.json, by which the same weights compute something else; old sets do not say theirs.

        Args:
            directory: of the model, which is named for the error.
        """
        expected = self.manifest.job["model"].get("config_sha256")
        found = config_hash(directory, self.manifest.job["model"])
        if expected not in (None, found):
            raise UserError(
                f"negative set '{self.folder.path}' was made with a reference model whose config.json has the hash "
                f"{str(expected)[:16]}, but that of --model '{model}' has {found[:16]}. Use the reference as "
                "it was, or generate a set with this model."
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
        """The groups of one shard after another. Raises UserError if a shard is damaged."""
        for index in range(len(self.manifest.shards)):
            yield self.shard_table(index, columns)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All groups in one Arrow table, in memory: a row is a group, its columns those of `data.schema`.

        Args:
            columns: by their paths in Parquet, such as "prompt" or "negatives.list.element.text"; None: all of them.

        Raises:
            UserError: a shard is missing or damaged, or has no such column.
        """
        empty = group_schema(self.signals, self.manifest.schema_version).empty_table()
        known = {path.partition(".")[0] for path in columns or ()}
        if unknown := sorted(known - set(empty.column_names)):
            raise UserError(
                f"negative set '{self.folder.path}' has no column '{unknown[0]}'."
                f"{did_you_mean(unknown[0], empty.column_names)} Its columns: {', '.join(empty.column_names)}."
            )
        return pa.concat_tables(list(self.tables(columns)) or [empty])

    def to_pandas(self, columns: Sequence[str] | None = None) -> "DataFrame":
        """All groups as a pandas data frame, in memory; arguments and errors as of `table`."""
        return self.table(columns).to_pandas()

    def to_datasets(self, columns: Sequence[str] | None = None) -> "Dataset":
        """All groups as a data set of Hugging Face `datasets`, in memory; arguments and errors as of `table`."""
        from datasets import Dataset

        return Dataset(self.table(columns))

    def groups(self) -> Iterator[Group]:
        """Every group, shard by shard."""
        for table in self.tables():
            yield from map(group_from_row, table.to_pylist())

    def shard(self, index: int) -> list[Group]:
        """The groups of one shard. Raises UserError if it is damaged."""
        return [group_from_row(row) for row in self.shard_table(index, None).to_pylist()]

    def shard_table(self, index: int, columns: Sequence[str] | None) -> pa.Table:
        """Columns of a shard by their paths in Parquet, such as "negatives.list.element.ids"; None: all of them.

        The first time that this object reads them the shard is checked; later only those columns are read.

        Raises:
            UserError: the shard is missing or damaged.
        """
        shard, key = self.manifest.shards[index], (index, None if columns is None else tuple(columns))
        known = key in self._sound
        source: Any = self.folder.open(shard.file) if known else BytesIO(self._verified(shard.file, shard.sha256))
        with self._reading(shard.file), parquet_file(source, known=known) as file:
            self._check_columns(shard.file, file.schema_arrow)
            table = read_columns(file, columns)
        if not known:
            self._check_values(shard.file, table, shard.rows)
            self._sound.add(key)
        return table

    def peek(self, index: int, column: str) -> pa.ChunkedArray:
        """One column of a shard, without reading the rest of it, so without verifying its checksum.

        For what must be known before anything is used: whatever is used later goes through `shard_table`.

        Raises:
            UserError: the shard is missing, or damaged so that the column cannot be read.
        """
        shard = self.manifest.shards[index]
        try:
            with self._reading(shard.file), parquet_file(self.folder.open(shard.file)) as file:
                self._check_columns(shard.file, file.schema_arrow)
                table = read_columns(file, [column])
            self._check_values(shard.file, table, shard.rows)
            return table.column(column)
        except FileNotFoundError:
            raise self._lacks(shard.file) from None
        except UserError:
            self._verified(shard.file, shard.sha256)  # where the whole is damaged that says more
            raise

    def rejects(self) -> list[Reject]:
        """Every rejected row with its reason. Raises UserError if their file is missing or damaged."""
        content = self._verified(REJECTS, self.manifest.rejects["sha256"])
        with self._reading(REJECTS), parquet_file(BytesIO(content)) as file:
            self._check_columns(REJECTS, file.schema_arrow)
            table = read_columns(file)
        self._check_values(REJECTS, table, self.manifest.rejects["rows"])
        return [Reject(**row) for row in table.to_pylist()]

    def _check_values(self, file: str, table: pa.Table, rows: int) -> None:
        """Raise UserError for values that no reader can work with, or other numbers of rows than the manifest's."""
        nullable = NULLABLE if self.computes else NULLABLE | SCORES
        problems = [text] if (text := unreadable(table)) else []
        of_some = self.manifest.only_of
        problems = problems or null_problems(table, NULLABLE_IN_REJECTS if file == REJECTS else nullable, of_some)
        if self.computes and file != REJECTS:
            problems = problems or score_problems(table, of_some)
        problems = problems or id_problems(table, self.vocabulary)
        problems = problems or length_problems(table, self.context, truths_only=self.truths_only)
        if not problems and table.num_rows != rows:
            problems = [f"{counted(table.num_rows, 'row')}, the manifest says {rows}"]
        if problems:
            raise self._unusable(file, problems[0])

    @contextmanager
    def _reading(self, file: str) -> Iterator[None]:
        try:
            yield
        except Unreadable as error:
            raise self._unusable(file, first_line(error)) from error

    def _unusable(self, file: str, why: str) -> UserError:
        return UserError(
            f"{file} of negative set '{self.folder.path}' cannot be used: {why}. Restore it, or generate the set again."
        )

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
