"""Writing the shards of a negative set.

A shard counts as finished when its record exists; the record is written after the shard (`data.set_directory`). When
all are there, rejects and manifest are written and the job's folder is removed. Neither a shard nor a record nor a
manifest ever replaces another one: a process that was taken over from, or that Ray has given up, comes too late.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.command.errors import UserError
from data.manifest import MANIFEST, REJECTS, Manifest, ShardRecord, environment, only_of, shard_name
from data.schema import SCHEMA_VERSION, Group, Reject, group_schema, groups_to_table, reject_schema, rejects_to_table
from data.set_directory import SetDirectory
from data.shard_records import JOB_FOLDER, ShardEntry, record_name
from data.storage import sha256

RECORDS_AT_A_TIME = 1000


def _parquet(schema: pa.Schema, tables: Iterable[pa.Table]) -> bytes:
    buffer = BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for table in tables:
            if table.num_rows:  # `datasets` cannot read a row group without rows
                writer.write_table(table)
    return buffer.getvalue()


def _tokens_by_strategy(groups: Sequence[Group]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for group in groups:
        for candidate in group.negatives:
            counts[candidate.strategy] += len(candidate.ids)
    return dict(sorted(counts.items()))


class NegativeSetWriter(SetDirectory):
    """Writes one negative set, shard by shard, in any order.

    The job's driver calls `begin` and at its end `finish`, or `collect` and `seal`, or `release` or `end`.
    `write_shard` may be called from any process of that job.
    """

    def write_shard(
        self,
        index: int,
        groups: Sequence[Group],
        rejects: Sequence[Reject],
        *,
        seconds: dict[str, float],
        layout: str,
        truncated: int = 0,
        occupancy: float | None = None,
        slot_seconds: dict[str, float] | None = None,
    ) -> ShardRecord:
        """Write one shard whole, then its record.

        A finished shard is never touched again: its record is returned as it is, so that Ray may run a task twice.

        Raises:
            UserError: the place cannot be written, or another run of the job has taken it over.
            ValueError: the signals of a candidate are not the set's, or it lacks a value, or has one where there is
                none to have (a bug of the caller).
        """
        if done := self._done(index):
            return done
        self._check_signals(groups)
        content = _parquet(group_schema(self.signals), [groups_to_table(groups, self.signals)])
        name = shard_name(index)
        self.publish(name, content)
        record = ShardRecord(
            file=name,
            rows_read=len(groups) + len(rejects),
            rows=len(groups),
            rows_rejected=len(rejects),
            rows_truncated=truncated,
            bytes=len(content),
            sha256=sha256(content),
            tokens={
                "prompt": sum(len(g.prompt_ids) for g in groups),
                "response": sum(len(g.response_ids) for g in groups),
                "negatives": sum(len(c.ids) for g in groups for c in g.negatives),
                **_tokens_by_strategy(groups),
            },
            seconds={stage: round(value, 3) for stage, value in seconds.items()},
            layout=layout,
            occupancy=None if occupancy is None else round(occupancy, 4),
            slot_seconds=slot_seconds and {name: round(value, 6) for name, value in slot_seconds.items()},
        )
        self.publish(record_name(index), ShardEntry(record, list(rejects), self.content_sha256).to_json())
        return record

    def collect(self, num_shards: int, inputs: dict[str, Any] | None = None) -> Manifest:
        """Write the rejects once all shards are finished, and make the manifest.

        Raises:
            UserError: a shard is missing or damaged, or another run owns the directory.
        """
        self.mend()
        missing = set(range(num_shards)) - self.finished()
        if missing:
            raise UserError(
                f"'{self.folder.path}': {len(missing)} of {num_shards} shards are not finished (first: "
                f"{shard_name(min(missing))}). Run the same command again."
            )
        records: list[ShardRecord] = []
        reasons: Counter[str] = Counter()

        def rejects() -> Iterator[pa.Table]:
            for start in range(0, num_shards, RECORDS_AT_A_TIME):
                names = [record_name(i) for i in range(start, min(start + RECORDS_AT_A_TIME, num_shards))]
                entries = [ShardEntry.from_json(content) for content in self.folder.read_all(names)]
                records.extend(entry.record for entry in entries)
                part = [reject for entry in entries for reject in entry.rejects]
                reasons.update(reject.reason for reject in part)
                yield rejects_to_table(part)

        content = _parquet(reject_schema(), rejects())
        self.publish(REJECTS, content)
        counts = {
            "rows_read": sum(r.rows_read for r in records),
            "rows_written": sum(r.rows for r in records),
            "rows_rejected": sum(reasons.values()),
            "rows_truncated": sum(r.rows_truncated for r in records),
            "rejected_by_reason": dict(reasons),
        }
        assert counts["rows_read"] == counts["rows_written"] + counts["rows_rejected"]
        return Manifest(
            schema_version=SCHEMA_VERSION,
            job=self.job,
            environment=environment(),
            inputs=inputs or {},
            parent=self.parent,
            signals=self.signals,
            counts=counts,
            shards=records,
            rejects={"file": REJECTS, "rows": counts["rows_rejected"], "sha256": sha256(content)},
        )

    def seal(self, manifest: Manifest) -> None:
        """Write the manifest, which makes the set a finished one, and remove what only the job needed.

        Raises:
            UserError: another run owns the directory, or has finished the set.
        """
        self.check()
        self.folder.remove_temporary()  # of workers that were killed while they wrote
        if not self.folder.create(MANIFEST, manifest.to_json()):
            raise UserError(f"another run has finished '{self.folder.path}' already. Run one at a time.")
        self.folder.remove(JOB_FOLDER)
        self.end()

    def finish(self, num_shards: int) -> Manifest:
        """Finish the set without its dataset card: `collect`, then `seal`."""
        manifest = self.collect(num_shards)
        self.seal(manifest)
        return manifest

    def _check_signals(self, groups: Sequence[Group]) -> None:
        having = only_of(self.job)
        for group in groups:
            for number, candidate in enumerate(group.negatives):
                if candidate.similarity.keys() != set(self.signals):
                    raise ValueError(
                        f"negative {number} of group {group.id} has the signals {sorted(candidate.similarity)}, the "
                        f"set has {sorted(self.signals)}"
                    )
                for signal, value in candidate.similarity.items():
                    if (value is not None) != (candidate.strategy in having.get(signal, (candidate.strategy,))):
                        raise ValueError(
                            f"negative {number} ({candidate.strategy}) of group {group.id} has {value} of signal "
                            f"'{signal}', which is of {', '.join(having.get(signal, ('all',)))}"
                        )

    def _done(self, index: int) -> ShardRecord | None:
        """The record of a shard that is finished, and there; None if it is not."""
        entry = self.entry(index)
        return entry.record if entry and self.folder.size(entry.record.file) == entry.record.bytes else None

    def publish(self, name: str, content: bytes) -> None:
        """Put a file of an unfinished set in its place. Raises UserError if it is not ours to write."""
        self.check()
        if self.folder.create(name, content):
            return
        # Of a worker that was killed between shard and record, or of a run that we took over from.
        self.check()
        self.discard(name)
        if not self.folder.create(name, content):
            raise UserError(
                f"'{self.folder.path}/{name}' is written by two workers at once. Run the same command again."
            )
