"""What must hold in a negative set, as pure functions: what they return are the problems found, in words."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data.command.wording import counted
from data.counts import least_of
from data.manifest import DTYPES, MANIFEST, REJECTS, Manifest, ShardRecord
from data.schema import SCHEMA_VERSION, Group, group_schema, reject_schema, schema_differences
from data.shard_records import JOB_FOLDER
from data.soundness import array_of, floats_of, score_columns
from data.sources.splits import SPLITS
from data.storage import TEMPORARY_PREFIX
from data.tokens import described_ends
from negatives_gen.job.reachable import in_support
from negatives_gen.signals import SIGNALS
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import SAMPLE, Tools

TOKENIZER_KEYS = ["chat_template_sha256", "eos_token_id", "sha256"]  # and, if there are more ends, end_token_ids
TOKENS = ("prompt", "response", "negatives")
ROUNDING = 1e-3  # of a log-probability above 0, and of an embedding's length
# |stored - recomputed| of a summed log-probability in nats: another layout, device or thread count rounds otherwise.
LOGP_BOUND, LOGP_BOUND_PER_TOKEN = 1e-2, 1e-4


def manifest_problems(manifest: Manifest, content: bytes) -> list[str]:
    """Whether a manifest agrees with itself; `content` is the file. What is missing from it is a problem too."""
    problems = [] if content == manifest.to_json() else ["it is not spelled as it was written"]
    try:
        problems += _contradictions(manifest)
        json.dumps(manifest.job, allow_nan=False)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problems.append(f"it is damaged ({type(error).__name__}: {error})")
    return problems


def _contradictions(manifest: Manifest) -> list[str]:
    counts, shards, job = manifest.counts, manifest.shards, manifest.job
    sums = {
        "rows_read": sum(s.rows_read for s in shards),
        "rows_written": sum(s.rows for s in shards),
        "rows_rejected": sum(s.rows_rejected for s in shards),
        "rows_truncated": sum(s.rows_truncated for s in shards),
    }
    problems = [f"{k} is {counts[k]}, the shards' sum {total}" for k, total in sums.items() if counts[k] != total]
    if counts["rows_read"] != counts["rows_written"] + counts["rows_rejected"]:
        problems.append("rows read are not rows written + rows rejected")
    by_reason = sum(counts["rejected_by_reason"].values())
    for where, rejected in (("rejected_by_reason", by_reason), ("rejects", manifest.rejects["rows"])):
        if rejected != counts["rows_rejected"]:
            problems.append(f"{where} counts {counted(rejected, 'row')}, rows_rejected is {counts['rows_rejected']}")
    examples = manifest.inputs.get("examples")
    if manifest.inputs and examples != counts["rows_read"]:
        problems.append(f"inputs counts {examples} examples, rows_read is {counts['rows_read']}")
    for key in ("examples", "examples_sha256"):  # of a stream they are known only afterwards
        source, read = job["data"][key], manifest.inputs.get(key)
        if source is not None and source != read:
            problems.append(f"job.data.{key} is {source}, inputs.{key} is {read}")

    strategies = job["strategies"]
    for name, settings in strategies.items():
        if type(settings["count"]) is not int or settings["count"] < 1:
            problems.append(f"strategy {name} has the count {settings['count']!r}")
        elif not 1 <= least_of(settings) <= settings["count"]:
            problems.append(f"strategy {name} has the count {settings['count']}, and at least {least_of(settings)}")
    for shard in shards:
        if shard.rows_read != shard.rows + shard.rows_rejected:
            problems.append(f"{shard.file}: rows read are not rows + rows rejected")
        for name in set(shard.tokens) - {*TOKENS, *strategies}:
            problems.append(f"{shard.file}: it counts tokens of '{name}', which is no strategy of the set")
        if shard.tokens["negatives"] != sum(shard.tokens.get(name, 0) for name in strategies):
            problems.append(f"{shard.file}: tokens of negatives are not the sum of the strategies'")
        if not all(math.isfinite(seconds) and seconds >= 0 for seconds in shard.seconds.values()):
            problems.append(f"{shard.file}: seconds that are no time")
        if shard.layout not in ("packed", "padded"):
            problems.append(f"{shard.file}: layout '{shard.layout}'")
    hashes = [job["model"]["weights_sha256"], job["tokenizer"]["sha256"], manifest.rejects["sha256"]]
    # Sets from before 0.6 have none of these.
    hashes += [job["model"].get(key, "0" * 64) for key in ("config_sha256", "config_words_sha256")]
    hashes += [shard.sha256 for shard in shards]
    hashes += [manifest.parent["manifest_sha256"]] if manifest.parent else []
    for value in hashes:
        if not re.fullmatch("[0-9a-f]{64}", value):
            problems.append(f"'{value}' is no SHA-256")
    if not manifest.signals or sorted(manifest.signals) != sorted(job["signals"]):
        problems.append(f"ranking signals {manifest.signals}, job.signals says {', '.join(job['signals'])}")
    if not isinstance(job["model"]["name"], str) or job["model"]["scorer_dtype"] not in DTYPES:
        problems.append(f"model '{job['model']['name']}' in {job['model']['scorer_dtype']}")
    for name, having in manifest.only_of.items():
        if not set(having) & strategies.keys():
            problems.append(f"ranking signal {name} is of {', '.join(having)} alone, and the set has none of these")
    keys, ends = sorted(job["tokenizer"].keys() - {"end_token_ids"}), described_ends(job["tokenizer"])
    if keys != TOKENIZER_KEYS or not all(type(token) is int for token in {*ends, job["tokenizer"]["eos_token_id"]}):
        problems.append(f"job.tokenizer is {job['tokenizer']}, it has {', '.join(TOKENIZER_KEYS)}")
    return problems


def foreign_files(names: set[str], manifest: Manifest) -> list[str]:
    """What an interrupted write left, and shards or other Parquet files that the manifest does not know."""
    known = {MANIFEST, REJECTS, *(shard.file for shard in manifest.shards)}
    strange = (JOB_FOLDER, TEMPORARY_PREFIX, "shard-")
    return [
        f"{name} is no file of the set"
        for name in sorted(names - known)
        if name.startswith(strange) or name.endswith(".parquet")
    ]


def schema_problems(table: pa.Table, signals: Sequence[str], version: int = SCHEMA_VERSION) -> list[str]:
    """Whether a shard has the columns of a schema version."""
    return schema_differences(table.schema, group_schema(signals, version))


def split_problems(table: pa.Table, file: str, split: str) -> list[str]:
    """The groups that belong to no half of the data source, or to one that the job did not ask for.

    Args:
        split: of the job, "train", "test" or "all".
    """
    halves = [half for half in SPLITS if half != "all"] if split == "all" else [split]
    return [
        f"{file}: group {group} is of split '{half}', not of {' or '.join(halves)}"
        for group, half in zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True)
        if half not in halves
    ]


def count_problems(table: pa.Table, record: ShardRecord, strategies: dict[str, dict[str, Any]]) -> list[str]:
    """Rows and tokens of a shard against its record, and each group's negatives against the job's strategies."""
    problems = []
    if table.num_rows != record.rows:
        problems.append(f"{record.file}: {counted(table.num_rows, 'row')}, the manifest says {record.rows}")
    negatives = _flat(table)
    names = negatives["strategy"].to_pylist()
    lengths = _lengths(negatives["ids"])
    found: Counter[str] = Counter()
    for name, length in zip(names, lengths.tolist(), strict=True):
        found[name] += length
    found["prompt"] = int(_lengths(table["prompt_ids"]).sum())
    found["response"] = int(_lengths(table["response_ids"]).sum())
    found["negatives"] = int(lengths.sum())
    for name in sorted({*found, *record.tokens}, key=str):
        if found[name] != record.tokens.get(name, 0):
            problems.append(
                f"{record.file}: {found[name]} tokens of {name}, the manifest says {record.tokens.get(name, 0)}"
            )
    bounds = {name: (least_of(settings), settings["count"]) for name, settings in strategies.items()}
    expected = {name: most if least == most else f"{least} to {most}" for name, (least, most) in bounds.items()}
    groups = table["id"].to_pylist()
    ends = np.cumsum(_lengths(table["negatives"])).tolist()
    for group, start, end in zip(groups, [0, *ends], ends, strict=False):
        has = dict(Counter(names[start:end]))
        if has.keys() != bounds.keys() or not all(bounds[n][0] <= has[n] <= bounds[n][1] for n in has):
            problems.append(f"{record.file}: group {group} has the negatives {has}, the manifest says {expected}")
    return problems


def token_problems(table: pa.Table, file: str, ends: Collection[int]) -> list[str]:
    """Whether prefixes and continuations have tokens, every ground truth ends with an end, and nothing has one before.

    Args:
        ends: ids, see `data.tokens.Marks`.
    """
    groups = table["id"].to_pylist()
    negatives = _flat(table)
    owner = np.repeat(np.arange(len(groups)), _lengths(table["negatives"]))
    problems = [
        f"{file}: an empty negative in group {groups[owner[i]]}" for i in _where(_lengths(negatives["ids"]) < 1)
    ]
    problems += [f"{file}: group {groups[i]} has no prefix" for i in _where(_lengths(table["prompt_ids"]) < 1)]
    truths = table["response_ids"].to_pylist()
    spoken, last = ", ".join(map(str, sorted(ends))), [ids[-1] if ids else None for ids in truths]
    problems += [
        f"{file}: the ground truth of group {group} ends with {token}, not with EOS ({spoken})"
        for group, token in zip(groups, last, strict=True)
        if token not in ends
    ]
    wholes = [("the ground truth", group, ids) for group, ids in zip(groups, truths, strict=True)]
    wholes += [("a negative", groups[i], ids) for i, ids in zip(owner, negatives["ids"].to_pylist(), strict=True)]
    problems += [
        f"{file}: {what} of group {group} goes on after its end ({ids[place]})"
        for what, group, ids in wholes
        if ids and (place := next((i for i, token in enumerate(ids[:-1]) if token in ends), None)) is not None
    ]
    return problems


def number_problems(table: pa.Table, file: str, signals: Sequence[str], only_of: Collection[str] = ()) -> list[str]:
    """Whether log-probabilities and similarities are finite, and embeddings of unit length.

    Args:
        only_of: signals of which some candidates have no value.
    """
    groups = np.array(table["id"].to_pylist(), dtype=object)
    problems = []
    for what, values, rows in score_columns(table, only_of):
        wrong = ~np.isfinite(values)
        if what.startswith(("reference_logp", "sampler_logp")):
            wrong |= values > ROUNDING
        problems += [f"{file}: {what} in group {groups[rows[i]]} is {values[i]}" for i in _where(wrong)]
    column = array_of(table["response_embedding"])
    # Of a signal from outside it is not known whether it sets them: then those that are there are checked.
    embeds = any(SIGNALS.load(name).embeds for name in signals if name in SIGNALS.names())
    if embeds or column.null_count < len(column):
        sizes = _lengths(column)
        squares = np.nan_to_num(floats_of(column.flatten()), nan=np.inf) ** 2
        sums = np.add.reduceat(np.append(squares, 0.0), np.cumsum(sizes) - sizes) if len(sizes) else np.zeros(0)
        length = np.sqrt(np.where(sizes > 0, sums, 0.0))
        problems += [
            f"{file}: the embedding of group {groups[i]} has length {length[i]:.4f}, not 1"
            for i in _where(~(np.abs(length - 1) <= ROUNDING))
        ]
    return problems


def support_problems(table: pa.Table, file: str, job: dict[str, Any]) -> list[str]:
    """The groups that say of the sampler's reach what the strategies' settings and the lengths alone contradict."""
    strategies = job["strategies"]
    if "in_support" not in table.column_names or not strategies.keys() <= set(STRATEGIES.names()):
        return []  # of an older version, or with a strategy from outside, of which nothing is known here
    samplers = {name: strategies[name] for name in strategies if STRATEGIES.load(name).stage == SAMPLE}
    tools, problems = Tools(seed=0, context=job["data"]["context"], tokenizer=None), []
    for row in table.select(["id", "prompt_ids", "response_ids", "in_support"]).to_pylist():
        group = Group(row["id"], "", "", row["prompt_ids"] or [], row["response_ids"] or [])
        try:
            expected = in_support(group, None, samplers, tools)
        except (KeyError, TypeError) as error:
            return [f"{file}: settings of a strategy that samples are damaged ({type(error).__name__}: {error})"]
        said = row["in_support"]
        if said != expected and (expected is not None or not samplers):
            problems.append(f"{file}: in_support of group {group.id} is {said}, by the settings it is {expected}")
    return problems


def reject_problems(table: pa.Table, counts: dict[str, Any]) -> list[str]:
    """Whether the rejects have our columns and the manifest's counts."""
    if problems := schema_differences(table.schema, reject_schema()):
        return problems
    found, said = dict(Counter(table["reason"].to_pylist())), counts["rejected_by_reason"]
    return [] if found == said else [f"{found}, the manifest says {said}"]


class UniqueIds:
    """Finds repeated ids; holds 16 bytes per id."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, ids: Sequence[str], file: str) -> list[str]:
        """Take a shard's ids. Returns those that are none."""
        good = [name for name in ids if isinstance(name, str) and re.fullmatch("[0-9a-f]{32}", name)]
        self._bytes += bytes.fromhex("".join(good))
        wrong = [name for name in ids if name not in set(good)] if len(good) < len(ids) else []
        return [f"{file}: id {name!r} is not 32 hex digits" for name in wrong]

    def __len__(self) -> int:
        return len(self._bytes) // 16

    def repeated(self) -> list[str]:
        """A problem per id that stands there again."""
        ids = np.frombuffer(self._bytes, dtype=">u8").reshape(-1, 2)
        ids = ids[np.lexsort((ids[:, 1], ids[:, 0]))]
        again = ids[1:][(ids[1:] == ids[:-1]).all(axis=1)]
        return [f"id {row.tobytes().hex()} stands there again" for row in again]


def logp_bound(tokens: int) -> float:
    """How far a recomputed log-probability of so many tokens may lie from the stored one, in nats."""
    return LOGP_BOUND + LOGP_BOUND_PER_TOKEN * tokens


def _flat(table: pa.Table) -> dict[str, Any]:
    """The negatives of all groups, one array per field."""
    return _fields(array_of(table["negatives"]).flatten())


def _fields(structs: Any) -> dict[str, Any]:
    return {field.name: values for field, values in zip(structs.type, structs.flatten(), strict=True)}


def _lengths(lists: Any) -> np.ndarray:
    """Number of elements of each list, 0 for null."""
    return array_of(lists).value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _where(condition: np.ndarray) -> list[int]:
    return np.nonzero(condition)[0].tolist()
