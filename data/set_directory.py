"""The directory of a negative set while a job works on it: who owns it, whose job it holds, and what of it is sound.

| holds | state | the same command |
|---|---|---|
| nothing, or the `_job/log` of a job that was given up | new | makes the set |
| `_job` | unfinished | checks what is finished, drops what is damaged, makes what is missing |
| `manifest.json`, and all that it says | finished | says so |
| `manifest.json`, and less or other than it says | damaged | becomes unfinished, and loses nothing that is sound |
| other files, or another job | foreign | refuses |

`_job/job.json` says what decides the content, `_job/inputs` holds the examples of each shard
(`negatives_gen.job.inputs`), and `_job/shard-00000.json` says that a shard is finished; it is written after the shard.
`_job/manifest.json` is what a damaged set's manifest said: a shard that is what it says stays until it is made again,
also where its rejects are lost, and counts as finished once `rejects.parquet` is restored.
`.claim` says who owns the directory (`data.claim`).
"""

import contextlib
import json
import logging
import re
from collections.abc import Sequence
from typing import Any

from data.claim import CLAIMS, Claim, TakenOver
from data.command.errors import UserError
from data.manifest import (
    MANIFEST,
    REJECTS,
    Manifest,
    first_difference,
    parse_manifest,
    read_manifest,
    said_of_difference,
    shard_name,
)
from data.schema import SCHEMA_VERSION
from data.shape import as_read, parse_json
from data.shard_records import (
    JOB_FOLDER,
    ShardEntry,
    entries_of,
    read_entries,
    read_entry,
    record_name,
    recorded,
    unsound,
)
from data.storage import Folder, sha256

log = logging.getLogger(__name__)

JOB_FILE = f"{JOB_FOLDER}/job.json"
INPUTS = f"{JOB_FOLDER}/inputs"
REOPENED = f"{JOB_FOLDER}/{MANIFEST}"
LOG = f"{JOB_FOLDER}/log"  # what libraries print (`data.command.library_output`); of a job that failed it stays
ANSWERS = f"{JOB_FOLDER}/answers"  # of an API: they cost money, so that a job which has some is not given up


class SetDirectory:
    """A directory that one job makes a set in, owned by one run at a time.

    Args:
        path: directory or URL of the set.
        job, signals, parent: what decides the content, see `data.manifest.Manifest`.
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
        self.job = as_read(job)
        self.signals = list(signals)
        self.parent = parent
        self.undecided = tuple(undecided)
        self.claim: Claim | None = None
        decides = _without(_content(self.job, self.signals, parent), self.undecided)
        self.content_sha256 = sha256(json.dumps(decides, sort_keys=True).encode())
        # Records of earlier versions do not say what they belong to; job.json does.
        self._contents = (self.content_sha256, None)

    def begin(self) -> bool:
        """Own the directory. True if there is work left, False if the set is complete and sound already.

        What is damaged is said and counts as not done: a finished set that lacks a shard is unfinished again.

        Raises:
            UserError: another run owns the directory; it holds another job (or the same one with other signals), or
                files that are no negative set.
        """
        if self._is_complete() and not {JOB_FOLDER, CLAIMS} & self.folder.names():
            return False
        self.claim = Claim.take(self.folder)
        try:
            if self._is_complete():  # looked at again, now that nobody else changes it
                self.folder.remove(JOB_FOLDER)  # a crash between the manifest and this clean-up leaves it behind
                self.folder.remove_temporary()
                self.end()
                return False
            if self._is_json(MANIFEST):
                self._reopen(read_manifest(self.folder, current=True))
            self._settle()
        except BaseException:
            self.end()
            raise
        return True

    def check(self) -> None:
        """Raise UserError if another run owns the directory by now; copies of this object in workers can ask too."""
        if self.claim is not None:
            self.claim.check()

    def discard(self, name: str) -> None:
        """Remove a file, but not that of a run that has taken over since we last asked: that is put back."""
        content = self.folder.read_if_there(name)
        self.folder.remove(name)
        if content is not None and self.claim is not None and not self.claim.holds():
            self.folder.create(name, content)
            self.check()

    def end(self) -> None:
        """Give the directory back as it is: the same command goes on with it."""
        if self.claim is not None:
            self.claim.end()

    def release(self) -> None:
        """Give the directory up if nothing was made or paid for, so that a job that failed early may be corrected.

        Removes nothing if the set is finished, or if another run owns the directory by now. Where anything but the
        job's folder is left, such as the card of a set that was finished once, the directory stays this job's.
        """
        if self.claim is None or not self.claim.holds():
            return
        with contextlib.suppress(TakenOver):
            if MANIFEST not in self.folder.names() and not self.finished() and not self.folder.names(ANSWERS):
                self._remove_unrecorded()
                self.check()
                self.folder.remove_temporary()
                if self.folder.names() <= {JOB_FOLDER, CLAIMS}:
                    self._remove_job()
        self.end()

    def _remove_job(self) -> None:
        """Remove the job's folder file by file, but for its log, and no record: it is of a run that has taken over."""
        names = {f"{JOB_FOLDER}/{name}" for name in self.folder.names(JOB_FOLDER)}
        for name in sorted(names - {LOG, *map(record_name, self.finished())}):
            self.check()
            self.folder.remove(name)
        self.folder.remove_if_empty(JOB_FOLDER)

    def finished(self) -> set[int]:
        """Indices of the shards that have a record; `begin` and `mend` leave none that is damaged."""
        return recorded(self.folder)

    def entry(self, index: int) -> ShardEntry | None:
        """What is recorded of a shard of this set; None if it is not finished."""
        return read_entry(self.folder, index, self._contents)

    def mend(self) -> list[str]:
        """Forget every finished shard that is not what its record says, and say so. Returns their files."""
        entries = read_entries(self.folder, sorted(self.finished()), self._contents)
        damaged = set(unsound(self.folder, (entry.record for entry in entries.values() if entry)))
        lost = [index for index, entry in entries.items() if entry is None or entry.record.file in damaged]
        for index in lost:
            self.discard(record_name(index))
        if lost:
            self._remove_unrecorded()
            log.warning("'%s': damaged, and made again: %s", self.folder.path, _listed(map(shard_name, lost)))
        return [shard_name(index) for index in lost]

    def _is_complete(self) -> bool:
        """Whether the set is finished and sound; False if there is work left. Raises UserError for what is foreign."""
        names = self.folder.names() - {CLAIMS}
        # An unreadable manifest beside the job's folder: power was lost while it was written.
        if MANIFEST in names and (JOB_FOLDER not in names or self._is_json(MANIFEST)):
            manifest = read_manifest(self.folder, current=True)
            self._refuse_other_job(_content(manifest.job, manifest.signals, manifest.parent))
            damaged = self._damage(manifest)
            if damaged and manifest.schema_version != SCHEMA_VERSION:  # it would mix two versions' shards
                raise UserError(
                    f"negative set '{self.folder.path}' has schema version {manifest.schema_version} and is damaged "
                    f"({_listed(damaged)}): this program writes version {SCHEMA_VERSION}. Restore what is lost, or "
                    "choose another --out."
                )
            return not damaged
        if JOB_FOLDER in names:
            if self._is_json(JOB_FILE):
                self._refuse_other_job(parse_json(self.folder.read(JOB_FILE)))
        elif names:
            raise UserError(
                f"output directory '{self.folder.path}' already holds other files ({sorted(names)[0]} ...). "
                "Choose an empty or new --out."
            )
        return False

    def _damage(self, manifest: Manifest) -> list[str]:
        files = unsound(self.folder, manifest.shards)
        try:
            if sha256(self.folder.read(manifest.rejects["file"])) != manifest.rejects["sha256"]:
                files.append(manifest.rejects["file"])
        except FileNotFoundError:
            files.append(manifest.rejects["file"])
        return files

    def _reopen(self, manifest: Manifest) -> None:
        """Make a damaged set an unfinished one, in which what its manifest said is kept (see `_record_again`)."""
        log.warning("'%s': damaged or missing, and made again: %s", self.folder.path, _listed(self._damage(manifest)))
        self.folder.write(JOB_FILE, self._job_json())
        self.folder.write(REOPENED, manifest.to_json())
        self.discard(MANIFEST)

    def _settle(self) -> None:
        """Clear away what killed runs left, and say in job.json whose directory it is."""
        self.discard(MANIFEST)  # one that cannot be read, beside the job's folder
        for folder in ("", JOB_FOLDER, INPUTS, ANSWERS):
            self.folder.remove_temporary(folder)
        if not self._is_json(JOB_FILE):
            # Whose records these are is what they say themselves.
            for index, entry in read_entries(self.folder, sorted(self.finished()), [self.content_sha256]).items():
                if entry is None:
                    self.discard(record_name(index))
            self.folder.write(JOB_FILE, self._job_json())
        self.mend()
        self._record_again()
        self._remove_unrecorded()

    def _record_again(self) -> None:
        """Write the records of all that is sound of a set that was finished once, and name what cannot have one."""
        found = self._sound_before()
        for index, entry in found.items():
            if entry is not None:
                self.folder.write(record_name(index), entry.to_json())
        lacking = [shard_name(index) for index, entry in found.items() if entry is None]
        if lacking:
            log.warning(
                "'%s': sound, but made again because %s held their rejects: %s. Each stays until then; to keep them, "
                "stop, restore that file and run the same command again",
                self.folder.path, REJECTS, _listed(lacking),
            )  # fmt: skip

    def _sound_before(self) -> dict[int, ShardEntry | None]:
        """Shards without a record that are what the manifest of the finished set said, see `entries_of`."""
        manifest = self._reopened()
        return entries_of(self.folder, manifest, self.content_sha256, self.finished()) if manifest else {}

    def _reopened(self) -> Manifest | None:
        """What the set's manifest said when the set was found damaged; None if that was not, or of another job."""
        content = self.folder.read_if_there(REOPENED)
        if content is None:
            return None
        try:
            manifest = parse_manifest(content, self.folder, current=True)
        except UserError:  # damaged in its turn
            return None
        theirs = _content(manifest.job, manifest.signals, manifest.parent)
        theirs["schema_version"] = manifest.schema_version
        return None if first_difference(theirs, self._ours(), ignore=self.undecided) else manifest

    def _remove_unrecorded(self) -> None:
        """Remove shards without a record: of a worker that was killed in between, or whose record was damaged.

        Those of a set that was finished once stay while they are sound.
        """
        kept = {shard_name(index) for index in [*self.finished(), *self._sound_before()]}
        for name in self.folder.names():
            if re.fullmatch(r"shard-\d+\.parquet", name) and name not in kept:
                self.discard(name)

    def _job_json(self) -> bytes:
        return json.dumps(self._ours(), indent=2).encode()

    def _ours(self) -> dict[str, Any]:
        return _content(self.job, self.signals, self.parent)

    def _is_json(self, name: str) -> bool:
        """Whether a file holds a JSON object; an empty one, as after a power loss, does not."""
        content = self.folder.read_if_there(name)
        try:
            return content is not None and isinstance(parse_json(content), dict)
        except ValueError:
            return False

    def _refuse_other_job(self, other: dict[str, Any]) -> None:
        version = other.get("schema_version", "(missing)")
        if said := said_of_difference(other, self._ours(), ignore=(*self.undecided, "schema_version")):
            raise UserError(
                f"output directory '{self.folder.path}' already holds another job: {said}. Choose another --out, or "
                "run with the same settings to go on."
            )
        if version != SCHEMA_VERSION:
            raise UserError(
                f"output directory '{self.folder.path}' holds this job as another version of the software began it: "
                f"its schema_version is {version}, this one's is {SCHEMA_VERSION}. Finish it with that version, or "
                "choose another --out."
            )


def _content(job: dict[str, Any], signals: list[str], parent: dict[str, Any] | None) -> dict[str, Any]:
    """What a directory is claimed for: two runs for which it is equal work on the same set."""
    return {**job, "ranking signals": signals, "parent": parent, "schema_version": SCHEMA_VERSION}


def _without(content: Any, ignored: Sequence[str], path: str = "") -> Any:
    """A nested dict without some dotted keys."""
    if not isinstance(content, dict):
        return content
    dotted = {key: f"{path}.{key}" if path else key for key in content}
    return {k: _without(v, ignored, dotted[k]) for k, v in content.items() if dotted[k] not in ignored}


def _listed(names: Any) -> str:
    """The first names of many."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
