"""Writing the shards of a negative set.

While a job runs, its directory holds `_job/job.json` (what decides the content), `_job/inputs` (the examples of each
shard, see `negatives_gen.job.inputs`) and, for every finished shard, the shard and a record `_job/shard-00000.json`.
A shard counts as finished when its record exists; the record is written after the shard. When all are there, rejects
and manifest are written and `_job` is removed.
"""

import dataclasses
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.command.errors import UserError
from data.manifest import MANIFEST, Manifest, ShardRecord, environment, first_difference, read_manifest
from data.schema import SCHEMA_VERSION, Group, Reject, group_schema, groups_to_table, reject_schema, rejects_to_table
from data.shards import REJECTS, shard_name
from data.storage import Folder, sha256

JOB_FOLDER = "_job"
JOB_FILE = f"{JOB_FOLDER}/job.json"
INPUTS = f"{JOB_FOLDER}/inputs"
RECORDS_AT_A_TIME = 1000
# Which run of the job owns the directory.
DRIVER_FILE = f"{JOB_FOLDER}/driver"


def _record_name(index: int) -> str:
    return f"{JOB_FOLDER}/shard-{index:05d}.json"


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


def _claim(job: dict[str, Any], signals: list[str], parent: dict[str, Any] | None) -> dict[str, Any]:
    """What a directory is claimed for: two runs with equal claims work on the same set."""
    return {**job, "ranking signals": signals, "parent": parent, "schema_version": SCHEMA_VERSION}


class NegativeSetWriter:
    """Writes one negative set, shard by shard, in any order.

    One job at a time works on a directory: its driver calls `begin` and `finish` (`begin` also removes what an
    interrupted write left, so it must not run beside one). `write_shard` may be called from any process of that
    job, by one process at a time for the same shard.

    Args:
        path: directory or URL of the set.
        job: what decides the content (see `Manifest.job`), JSON-like.
        signals: ranking signals that every candidate has.
        parent: of a set that extends another, see `Manifest.parent`.
        undecided: dotted keys of the job, or "parent.name", that do not decide the content: two jobs that differ only
            there make the same set.
    """

    def __init__(
        self,
        path: str,
        job: dict[str, Any],
        signals: Sequence[str],
        parent: dict[str, Any] | None = None,
        *,
        undecided: Sequence[str] = (),
    ):
        self.folder = Folder(path)
        self.job = json.loads(json.dumps(job))
        self.signals = list(signals)
        self.parent = parent
        self.undecided = tuple(undecided)
        self.driver: bytes | None = None
        self.is_new = not self.folder.exists()

    def begin(self) -> bool:
        """Claim the directory. True if there is work left, False if the set is complete already.

        Raises:
            UserError: the directory holds another job (or the same one with other signals), or files that are
                no negative set.
        """
        names = self.folder.names()
        if MANIFEST in names:
            manifest = read_manifest(self.folder, current=True)
            self._refuse_other_job(_claim(manifest.job, manifest.signals, manifest.parent))
            self.folder.remove(JOB_FOLDER)  # a crash between the manifest and this clean-up leaves it behind
            return False
        if JOB_FOLDER in names and "job.json" in self.folder.names(JOB_FOLDER):
            self._refuse_other_job(json.loads(self.folder.read(JOB_FILE)))
            for folder in ("", JOB_FOLDER, INPUTS):
                self.folder.remove_temporary(folder)
        elif names - {JOB_FOLDER}:
            raise UserError(
                f"output directory '{self.folder.path}' already holds other files ({sorted(names)[0]} ...). "
                "Choose an empty or new --out."
            )
        else:
            self.folder.write(JOB_FILE, json.dumps(_claim(self.job, self.signals, self.parent), indent=2).encode())
        self.driver = uuid.uuid4().bytes
        self.folder.write(DRIVER_FILE, self.driver)
        return True

    def release(self) -> None:
        """Give the directory up if no shard is finished, so that a job that failed early may be corrected."""
        if not self.finished():
            for name in self.folder.names():
                if re.fullmatch(r"shard-\d+\.parquet", name):  # written, but its record was not
                    self.folder.remove(name)
            self.folder.remove(JOB_FOLDER)
            if self.is_new and not self.folder.names() and self.folder.exists():
                self.folder.remove("")

    def finished(self) -> set[int]:
        """Indices of the shards that are finished."""
        matches = (re.fullmatch(r"shard-(\d+)\.json", name) for name in self.folder.names(JOB_FOLDER))
        return {int(match.group(1)) for match in matches if match}

    def write_shard(
        self,
        index: int,
        groups: Sequence[Group],
        rejects: Sequence[Reject],
        *,
        seconds: dict[str, float],
        layout: str,
        truncated: int = 0,
    ) -> ShardRecord:
        """Write one shard whole, then its record.

        A finished shard is never touched again: its record is returned as it is, so that Ray may run a task twice.

        Raises:
            UserError: the place cannot be written, or another run of the job has taken it over.
            ValueError: the signals of a candidate are not the set's (a bug of the caller).
        """
        try:
            return ShardRecord(**json.loads(self.folder.read(_record_name(index)))["record"])
        except FileNotFoundError:
            pass
        self._check_signals(groups)
        content = _parquet(group_schema(self.signals), [groups_to_table(groups, self.signals)])
        name = shard_name(index)
        self._refuse_other_driver()
        self.folder.write(name, content)
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
        )
        entry = {"record": dataclasses.asdict(record), "rejects": [dataclasses.asdict(r) for r in rejects]}
        self._refuse_other_driver()
        self.folder.write(_record_name(index), json.dumps(entry).encode())
        return record

    def collect(self, num_shards: int, inputs: dict[str, Any] | None = None) -> Manifest:
        """Write the rejects once all shards are finished, and make the manifest. Raises UserError if one is missing."""
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
                names = [_record_name(i) for i in range(start, min(start + RECORDS_AT_A_TIME, num_shards))]
                entries = [json.loads(content) for content in self.folder.read_all(names)]
                records.extend(ShardRecord(**entry["record"]) for entry in entries)
                part = [Reject(**reject) for entry in entries for reject in entry["rejects"]]
                reasons.update(reject.reason for reject in part)
                yield rejects_to_table(part)

        content = _parquet(reject_schema(), rejects())
        self.folder.write(REJECTS, content)
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
        """Write the manifest, which makes the set a finished one, and remove what only the job needed."""
        self.folder.remove_temporary()  # of workers that were killed while they wrote
        self.folder.write(MANIFEST, manifest.to_json())
        self.folder.remove(JOB_FOLDER)

    def finish(self, num_shards: int) -> Manifest:
        """Finish the set without its dataset card: `collect`, then `seal`."""
        manifest = self.collect(num_shards)
        self.seal(manifest)
        return manifest

    def _check_signals(self, groups: Sequence[Group]) -> None:
        for group in groups:
            for number, candidate in enumerate(group.negatives):
                if candidate.similarity.keys() != set(self.signals):
                    raise ValueError(
                        f"negative {number} of group {group.id} has the signals {sorted(candidate.similarity)}, the "
                        f"set has {sorted(self.signals)}"
                    )

    def _refuse_other_driver(self) -> None:
        """A worker whose driver was killed may outlive it: it must not write beside the workers of the next one."""
        if self.driver is None:
            return
        try:
            driver = self.folder.read(DRIVER_FILE)
        except FileNotFoundError:
            driver = b""
        if driver != self.driver:
            raise UserError(
                f"another run of the job has taken over '{self.folder.path}'; this one stops. Run one at a time."
            )

    def _refuse_other_job(self, other: dict[str, Any]) -> None:
        difference = first_difference(other, _claim(self.job, self.signals, self.parent), ignore=self.undecided)
        if difference:
            key, theirs, ours = difference
            raise UserError(
                f"output directory '{self.folder.path}' already holds another job: its {key} is {theirs!r}, this "
                f"job's is {ours!r}. Choose another --out, or run with the same settings to go on."
            )
