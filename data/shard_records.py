"""What says that a shard is finished: its record in the job's folder, while the job runs, and whether the shard is what
its record says."""

import dataclasses
import json
import re
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate

from data.manifest import REJECTS, SHARD_SHAPE, Manifest, ShardRecord, shard_name
from data.parquet import Unreadable, parquet_file, read_parquet
from data.schema import REJECT_SHAPE, Reject, reject_schema, schema_differences
from data.shape import IfThere, ListOf, Maybe, misfit, parse_shaped
from data.soundness import unreadable
from data.storage import Folder, sha256

JOB_FOLDER = "_job"
READ_AT_A_TIME = 8
ENTRY_SHAPE = {
    "record": SHARD_SHAPE,
    "rejects": ListOf(REJECT_SHAPE),
    "content": IfThere(Maybe(str)),
}


@dataclass
class ShardEntry:
    """A finished shard of a job that runs.

    Attributes:
        record: what the manifest will say.
        rejects: rows of it that became no group.
        content: SHA-256 of what decides the content of the job's set; None in what earlier versions wrote.
    """

    record: ShardRecord
    rejects: list[Reject]
    content: str | None = None

    def is_of(self, index: int) -> bool:
        """Whether the entry is that shard's, and counts as many rows as its shard has."""
        record, rejected = self.record, len(self.rejects)
        counts = record.rows_rejected == rejected and record.rows_read == record.rows + rejected
        return counts and record.file == shard_name(index)

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "ShardEntry":
        """The entry that JSON of a record says. Raises ValueError or TypeError for what is damaged."""
        entry = parse_shaped(text, ENTRY_SHAPE)
        rejects = [Reject(**reject) for reject in entry["rejects"]]
        return cls(ShardRecord(**entry["record"]), rejects, entry.get("content"))


def record_name(index: int) -> str:
    """The record's file in the set's directory."""
    return f"{JOB_FOLDER}/shard-{index:05d}.json"


def recorded(folder: Folder) -> set[int]:
    """Indices of the shards that have a record."""
    matches = (re.fullmatch(r"shard-([0-9]{5}|[1-9][0-9]{5,})\.json", name) for name in folder.names(JOB_FOLDER))
    return {int(match.group(1)) for match in matches if match}


def read_entry(folder: Folder, index: int, contents: Sequence[str | None]) -> ShardEntry | None:
    """The entry of a shard; None if there is none, it is damaged or another shard's, or its content none of these."""
    content = folder.read_if_there(record_name(index))
    if content is None:
        return None
    try:
        entry = ShardEntry.from_json(content)
    except (ValueError, TypeError):
        return None
    return entry if entry.content in contents and entry.is_of(index) else None


def read_entries(
    folder: Folder, indices: Sequence[int], contents: Sequence[str | None]
) -> dict[int, ShardEntry | None]:
    """`read_entry` of many shards, several at a time."""
    with ThreadPoolExecutor(READ_AT_A_TIME) as pool:
        found = pool.map(lambda index: read_entry(folder, index, contents), indices)
        return dict(zip(indices, found, strict=True))


def unsound(folder: Folder, records: Iterable[ShardRecord]) -> list[str]:
    """Files of these shards that are missing, or whose size, checksum or rows are not what their record says."""

    def is_sound(record: ShardRecord) -> bool:
        try:
            content = folder.read(record.file)
        except FileNotFoundError:
            return False
        return len(content) == record.bytes and sha256(content) == record.sha256 and _rows(content) == record.rows

    records = list(records)
    with ThreadPoolExecutor(READ_AT_A_TIME) as pool:
        return [record.file for record, sound in zip(records, pool.map(is_sound, records), strict=True) if not sound]


def entries_of(
    folder: Folder, manifest: Manifest, content: str, done: Collection[int] = ()
) -> dict[int, ShardEntry | None]:
    """The entries of those shards of a finished set that are sound, as the job had them.

    Args:
        done: indices of those that are not looked at.

    Returns:
        None in the place of an entry whose rejects cannot be read: they are made again with their shard.
    """
    records = {index: record for index, record in enumerate(manifest.shards) if index not in done}
    damaged = set(unsound(folder, records.values()))
    rejects = _rejects(folder, manifest)
    starts = list(accumulate((record.rows_rejected for record in manifest.shards), initial=0))
    entries: dict[int, ShardEntry | None] = {}
    for index, record in records.items():
        if record.file not in damaged:
            mine = (rejects or [])[starts[index] : starts[index + 1]]
            entry = ShardEntry(record, mine, content)
            entries[index] = entry if entry.is_of(index) else None
    return entries


def _rejects(folder: Folder, manifest: Manifest) -> list[Reject] | None:
    """Every reject, in the order of the shards; None if their file is missing or damaged, or counts other rows."""
    content = folder.read_if_there(REJECTS)
    if content is None or sha256(content) != manifest.rejects["sha256"]:
        return None
    try:
        table = read_parquet(content)
    except Unreadable:
        return None
    if schema_differences(table.schema, reject_schema()) or unreadable(table):
        return None
    rows = table.to_pylist()
    # By the rule of records: one that is written of these is read back.
    fit = len(rows) == sum(r.rows_rejected for r in manifest.shards) and not misfit(rows, ListOf(REJECT_SHAPE))
    return [Reject(**row) for row in rows] if fit else None


def _rows(content: bytes) -> int | None:
    """Rows of a shard by its footer; None if that cannot be read."""
    try:
        with parquet_file(BytesIO(content), known=True) as file:  # its values are not read here
            return file.metadata.num_rows
    except Unreadable:
        return None
