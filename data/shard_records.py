"""What says that a shard is finished: its record in the job's folder, while the job runs, and whether the shard is what
its record says."""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from data.manifest import SHARD_SHAPE, Manifest, ShardRecord
from data.parquet import read_parquet
from data.schema import Reject
from data.shape import IfThere, ListOf, Maybe, parse_shaped
from data.storage import Folder, sha256

JOB_FOLDER = "_job"
READ_AT_A_TIME = 8
ENTRY_SHAPE = {
    "record": SHARD_SHAPE,
    "rejects": ListOf(dict.fromkeys(("id", "reason", "detail", "prompt"), str)),
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
    """The entry of a shard; None if there is none, it is damaged, or its content is none of these."""
    content = folder.read_if_there(record_name(index))
    if content is None:
        return None
    try:
        entry = ShardEntry.from_json(content)
    except (ValueError, TypeError):
        return None
    return entry if entry.content in contents else None


def read_entries(
    folder: Folder, indices: Sequence[int], contents: Sequence[str | None]
) -> dict[int, ShardEntry | None]:
    """`read_entry` of many shards, several at a time."""
    with ThreadPoolExecutor(READ_AT_A_TIME) as pool:
        found = pool.map(lambda index: read_entry(folder, index, contents), indices)
        return dict(zip(indices, found, strict=True))


def unsound(folder: Folder, records: Iterable[ShardRecord]) -> list[str]:
    """Files of these shards that are missing, or whose size or checksum is not what their record says."""

    def is_sound(record: ShardRecord) -> bool:
        try:
            content = folder.read(record.file)
        except FileNotFoundError:
            return False
        return len(content) == record.bytes and sha256(content) == record.sha256

    records = list(records)
    with ThreadPoolExecutor(READ_AT_A_TIME) as pool:
        return [record.file for record, sound in zip(records, pool.map(is_sound, records), strict=True) if not sound]


def entries_of(folder: Folder, manifest: Manifest, content: str) -> dict[int, ShardEntry]:
    """The entries of those shards of a finished set that are sound, as the job had them.

    A shard whose rejects cannot be read is not among them: they are made again with it.
    """
    damaged = set(unsound(folder, manifest.shards))
    rejects = _rejects(folder, manifest)
    entries, start = {}, 0
    for index, record in enumerate(manifest.shards):
        mine = rejects[start : start + record.rows_rejected] if rejects is not None else []
        start += record.rows_rejected
        if record.file not in damaged and len(mine) == record.rows_rejected:
            entries[index] = ShardEntry(record, mine, content)
    return entries


def _rejects(folder: Folder, manifest: Manifest) -> list[Reject] | None:
    """Every reject, in the order of the shards; None if their file is missing or damaged."""
    try:
        content = folder.read(manifest.rejects["file"])
    except FileNotFoundError:
        return None
    if sha256(content) != manifest.rejects["sha256"]:
        return None
    return [Reject(**row) for row in read_parquet(content).to_pylist()]
