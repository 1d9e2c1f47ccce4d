"""One row of a negative set: a group, i.e. one prefix with its ground truth and all its negatives.

The Arrow schema is the contract between stage 1 and stage 2. It is plain Parquet: readable by `datasets`, pandas,
DuckDB and Ray Data without any code of ours.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from data.shape import Count, ListOf, Maybe

SCHEMA_VERSION = 4
# Version 3 has no `in_support`; version 2 also has no `query`, and its `sampler_logp` is that before temperature and
# top-k. What trains has not changed.
READABLE_VERSIONS = (2, 3, SCHEMA_VERSION)
MOST_ID = (1 << 31) - 1  # of a token: columns of ids are int32


@dataclass
class Candidate:
    """One negative continuation of a group's prefix.

    Attributes:
        strategy: name of the strategy that made it.
        ids: token ids; they end with an end (`data.tokens.Marks`) only if the strategy or the model put it there.
        text: the ids as they read behind the prefix, without special tokens.
        finish_reason: "stop" or "length" for sampled candidates, else None.
        source_id: id of the group a batch negative was borrowed from, else None.
        seed: seed of the draw where the sampler takes one per request, else None.
        sampler_logp: log-density of the ids under what they were sampled from (after temperature and top-k), by the
            sampling engine, in nats, summed; None unless sampled.
        reference_logp: the reference model's log-probability of the ids in nats, summed.
        similarity: ranking signal -> similarity to the ground truth, higher is better; None where the signal has values
            for other strategies alone (`data.manifest.only_of`).
    """

    strategy: str
    ids: list[int]
    text: str
    finish_reason: str | None = None
    source_id: str | None = None
    seed: int | None = None
    sampler_logp: float | None = None
    reference_logp: float | None = None
    similarity: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Alternative:
    """Another response that a row of the data source lists, on its way to who makes negatives of it; never stored.

    Attributes:
        ids: token ids, as a ground truth of the same prefix has them; none where it cannot be used.
        score: that the row gives it, higher is better, or None.
        problem: why it cannot be used; "" if it can.
    """

    ids: list[int]
    score: float | None = None
    problem: str = ""


@dataclass
class Group:
    """One prefix, its ground truth and its negatives.

    Attributes:
        prompt, response: the texts.
        prompt_ids: tokens of the prefix, at least one.
        response_ids: tokens of the ground truth, the last one, and no other, an end.
        split: half of the data source it belongs to, "train" or "test". One generation job can make the training
            groups and the held-out ones; trainer and evaluation choose by it, so no held-out group is trained on.
        reference_logp: log-probability in nats of response_ids under the reference model, summed.
        in_support: whether the sampler could have said response_ids, under the settings of a strategy that samples;
            None where nothing is sampled, or it is not known (sets of schema versions 2 and 3).
        response_embedding: unit-length embedding of the response.
        messages: of a chat, those that the prompt was written from by the chat template, each with role and content.
        query: what a person asked, without what a template put around it; what a judge, an API or a reward model is
            shown. Empty only in a set of schema version 2.
        alternatives: what the row lists besides, in its order; no column of a set, so None in a group of one.
    """

    id: str
    prompt: str
    response: str
    prompt_ids: list[int]
    response_ids: list[int]
    split: str = "train"
    reference_logp: float | None = None
    in_support: bool | None = None
    response_embedding: list[float] | None = None
    negatives: list[Candidate] = field(default_factory=list)
    messages: list[dict[str, str]] | None = None
    query: str = ""
    alternatives: list[Alternative] | None = None


def as_messages(messages: list[dict[str, str]] | None, query: str | None) -> list[dict[str, str]]:
    """A prompt as what a chat template writes: the messages of a chat, or of a text what a person asked."""
    return messages or [{"role": "user", "content": query or ""}]


@dataclass(frozen=True)
class Reject:
    """A row of the source that became no group, and why.

    Attributes:
        reason, detail: in words; the reason is one of few, to be counted.
        prompt: text; of an unusable row, the first 200 characters.
        strategy: the one that could not give it as many negatives as asked for, else None. Only then there are:
        response, split, prompt_ids, response_ids, messages, query: as in `Group`.
    """

    id: str
    reason: str
    detail: str
    prompt: str
    strategy: str | None = None
    response: str | None = None
    split: str | None = None
    prompt_ids: list[int] | None = None
    response_ids: list[int] | None = None
    messages: list[dict[str, str]] | None = None
    query: str | None = None


# A reject as JSON, see `data.shape`.
REJECT_SHAPE = {
    **dict.fromkeys(("id", "reason", "detail", "prompt"), str),
    **dict.fromkeys(("strategy", "response", "split", "query"), Maybe(str)),
    **dict.fromkeys(("prompt_ids", "response_ids"), Maybe(ListOf(Count(MOST_ID)))),
    "messages": Maybe(ListOf({"role": str, "content": Maybe(str)})),
}

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

# What of a group or a reject may be null; a list's elements are called "[]". All else is always there.
NULLABLE = frozenset(
    (
        *("in_support", "response_embedding", "messages", "messages[].content"),
        *(f"negatives[].{name}" for name in ("sampler_logp", "finish_reason", "source_id", "seed")),
    )
)
# What a set without scores lacks: it can be looked at, and not computed with.
SCORES = frozenset(("reference_logp", "negatives[].reference_logp", "negatives[].similarity"))
NULLABLE_IN_REJECTS = frozenset(
    (*("strategy", "response", "split", "prompt_ids", "response_ids", "messages", "messages[].content", "query"),)
)


def example_id(prompt: Any, response: Any) -> str:
    """Id of an example, from its content alone: 32 hex digits. None and "None" are different contents."""
    types = "" if isinstance(prompt, str) and isinstance(response, str) else f"{type(prompt)}, {type(response)}, "
    prompt, response = (value if isinstance(value, str) else repr(value) for value in (prompt, response))
    content = f"{types}{len(prompt)}:{prompt}{response}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(content).hexdigest()[:32]


def group_schema(signals: Sequence[str], version: int = SCHEMA_VERSION) -> pa.Schema:
    """Arrow schema of a shard whose candidates carry the given ranking signals.

    Args:
        version: one of READABLE_VERSIONS.
    """
    candidate = pa.struct(
        [
            ("strategy", pa.string()),
            ("ids", pa.list_(pa.int32())),
            ("text", pa.string()),
            ("reference_logp", pa.float32()),
            ("sampler_logp", pa.float32()),
            ("similarity", pa.struct([(name, pa.float32()) for name in signals])),
            ("finish_reason", pa.string()),
            ("source_id", pa.string()),
            ("seed", pa.int64()),
        ]
    )
    return pa.schema(
        [
            ("id", pa.string()),
            ("prompt", pa.string()),
            ("response", pa.string()),
            *([] if version == 2 else [("query", pa.string())]),
            ("split", pa.string()),
            ("prompt_ids", pa.list_(pa.int32())),
            ("response_ids", pa.list_(pa.int32())),
            ("reference_logp", pa.float32()),
            *([] if version < 4 else [("in_support", pa.bool_())]),
            ("response_embedding", pa.list_(pa.float32())),
            ("messages", MESSAGES),
            ("negatives", pa.list_(candidate)),
        ]
    )


def reject_schema(version: int = SCHEMA_VERSION) -> pa.Schema:
    """Arrow schema of the rejects of a set of a schema version."""
    texts = ("id", "reason", "detail", "prompt", "strategy", "response", "split")
    return pa.schema(
        [
            *((name, pa.string()) for name in texts),
            *((name, pa.list_(pa.int32())) for name in ("prompt_ids", "response_ids")),
            ("messages", MESSAGES),
            *([] if version == 2 else [("query", pa.string())]),
        ]
    )


def schema_differences(found: pa.Schema, expected: pa.Schema) -> list[str]:
    """How the columns of a file differ from those that they should be, in words; none if they do not."""
    if found.equals(expected):
        return []
    differences = [f"column {name} stands there twice" for name in set(found.names) if found.names.count(name) > 1]
    if differences:
        return sorted(differences)
    for name in [*expected.names, *(n for n in found.names if n not in expected.names)]:
        types = [schema.field(name).type if name in schema.names else "missing" for schema in (found, expected)]
        if types[0] != types[1]:
            differences.append(f"column {name} is {types[0]}, the schema says {types[1]}")
    return differences or [f"columns {found.names} in another order than the schema's"]


def groups_to_table(groups: Sequence[Group], signals: Sequence[str]) -> pa.Table:
    """Groups as an Arrow table of `group_schema(signals)`."""
    return pa.Table.from_pylist([dataclasses.asdict(group) for group in groups], schema=group_schema(signals))


def rejects_to_table(rejects: Sequence[Reject]) -> pa.Table:
    """Rejects as an Arrow table of `reject_schema()`."""
    return pa.Table.from_pylist([dataclasses.asdict(reject) for reject in rejects], schema=reject_schema())


def group_from_row(row: dict) -> Group:
    """A group from a row of a shard, as `pyarrow` or `datasets` give it; similarities that are null are none."""
    negatives = [Candidate(**candidate) for candidate in row["negatives"]]
    for candidate in negatives:
        candidate.similarity = candidate.similarity or {}
    return Group(**{**row, "negatives": negatives})
