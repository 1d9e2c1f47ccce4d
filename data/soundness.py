"""What a table of a negative set may not hold, whatever its checksum: what readers would stumble over.

That is, beside other columns (`data.schema.schema_differences`), bytes that are no text, nulls, values where there must
be nulls, unknown ids, and sequences that are too long.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.command.errors import first_line
from data.schema import NULLABLE

NEGATIVES = "negatives[].ids"  # the field, in words
NONE: Mapping[str, Collection[str]] = {}


def unreadable(table: pa.Table) -> str:
    """Why a table cannot be read, such as text that is not UTF-8; "" if it can."""
    try:
        table.validate(full=True)
    except (pa.ArrowException, ValueError) as error:
        return first_line(error)
    return ""


def null_problems(
    table: pa.Table, nullable: frozenset[str] = NULLABLE, only_of: Mapping[str, Collection[str]] = NONE
) -> list[str]:
    """The columns and fields that hold nulls and may not, or values and may not, in words.

    Args:
        nullable: paths of those that may be null, with all that is in them.
        only_of: see `data.manifest.only_of`.
    """
    of_some = {_similarity(signal): having for signal, having in only_of.items()}
    nulls = [
        f"{count} of {path} are null"
        for name in table.column_names
        for chunk in [array_of(table.column(name))]
        for path, count in _nulls(chunk, name, nullable | of_some.keys())
    ]
    return nulls + [
        problem for path, having in of_some.items() for problem in _misplaced(table, path, having, nullable)
    ]


def score_problems(table: pa.Table, only_of: Collection[str] = NONE) -> list[str]:
    """The sequences without a token, and the scores that are no finite number, in words.

    Of each column or field of scores the first one, with its group where the table has ids.

    Args:
        only_of: see `score_columns`.
    """
    problems = [
        f"{name} holds an empty sequence"
        for name, lists in _sequences(table)
        if pc.min(lists.value_lengths()).as_py() == 0  # type: ignore[attr-defined]  # made at run time
    ]
    for name, values, rows in score_columns(table, only_of):
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            whose = f" of group {table['id'][rows[wrong[0]]]}" if "id" in table.column_names else ""
            problems.append(f"{name}{whose} is {values[wrong[0]]}, no finite number")
    return problems


def score_columns(table: pa.Table, only_of: Collection[str] = NONE) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Each column or field of scores that a table has.

    Args:
        only_of: ranking signals that not all candidates have a value of.

    Yields:
        Its name in words, its values, [N] float64, nan where one is lacking, and the row of the table that each is of,
        [N]. Of `sampler_logp`, which only sampled candidates have, and of those signals, the values that are there.
    """
    if "reference_logp" in table.column_names:
        values = floats_of(array_of(table.column("reference_logp")))
        yield "reference_logp of the ground truth", values, np.arange(table.num_rows)
    if "negatives" not in table.column_names:
        return
    owners = _owners(table)
    for name, values in _of_negatives(table):
        if name == "reference_logp":
            yield f"{name} of a negative", floats_of(values), owners
        elif name == "sampler_logp":
            yield f"{name} of a negative", floats_of(values.drop_null()), owners[_there(values)]
        elif name == "similarity":
            for field, similarities in zip(values.type, values.flatten(), strict=True):
                counts = _there(similarities) if field.name in only_of else np.ones(len(owners), dtype=bool)
                yield f"similarity '{field.name}' of a negative", floats_of(similarities)[counts], owners[counts]


def id_problems(table: pa.Table, vocabulary: int | None = None) -> list[str]:
    """The columns of token ids that hold some below 0 or, where the vocabulary's size is known, not below it."""
    problems = []
    for name, lists in _sequences(table):
        bounds = pc.min_max(lists.flatten())  # type: ignore[attr-defined]  # made at run time
        low, high = bounds["min"].as_py(), bounds["max"].as_py()
        if low is not None and low < 0:
            problems.append(f"{name} holds the id {low}")
        if high is not None and vocabulary is not None and high >= vocabulary:
            problems.append(f"{name} holds the id {high}, the vocabulary has {vocabulary}")
    return problems


def length_problems(table: pa.Table, context: int | None, *, truths_only: bool = False) -> list[str]:
    """The groups of which a model does not take prompt and continuation together, in words.

    Args:
        context: of the model in tokens; None: not known.
        truths_only: whether it is given no negatives.
    """
    if context is None or "prompt_ids" not in table.column_names:
        return []
    sequences = {name: _lengths(lists) for name, lists in _sequences(table)}
    longest = sequences.get("response_ids", np.zeros(table.num_rows, np.int64)).copy()
    if NEGATIVES in sequences and not truths_only:
        np.maximum.at(longest, _owners(table), sequences[NEGATIVES])
    tokens = sequences["prompt_ids"] + longest
    names = table["id"].to_pylist() if "id" in table.column_names else [f"in row {i}" for i in range(table.num_rows)]
    return [
        f"a sequence of group {names[row]} has {tokens[row]} tokens, the model's context {context}"
        for row in np.flatnonzero(tokens > context)
    ]


def _sequences(table: pa.Table) -> Iterator[tuple[str, Any]]:
    """Each column or field of token ids that the table has, as lists."""
    for name in ("prompt_ids", "response_ids"):
        if name in table.column_names:
            yield name, array_of(table.column(name))
    for name, values in _of_negatives(table):
        if name == "ids":
            yield NEGATIVES, values


def _lengths(lists: Any) -> np.ndarray:
    """Length of each list of an Arrow array; 0 of one that is not there."""
    return lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)


def _owners(table: pa.Table) -> np.ndarray:
    """The row of the table that each negative is of."""
    return np.repeat(np.arange(table.num_rows), _lengths(array_of(table.column("negatives"))))


def floats_of(values: Any) -> np.ndarray:
    """The numbers of an Arrow array as float64, nan where there is none."""
    return values.to_numpy(zero_copy_only=False).astype(np.float64)


def _of_negatives(table: pa.Table) -> Iterator[tuple[str, Any]]:
    """Each field of the negatives of all groups together."""
    if "negatives" in table.column_names:
        negatives = array_of(table.column("negatives")).flatten()
        yield from ((field.name, values) for field, values in zip(negatives.type, negatives.flatten(), strict=True))


def _similarity(signal: str) -> str:
    """The path of a signal's values."""
    return f"negatives[].similarity.{signal}"


def _misplaced(table: pa.Table, path: str, having: Collection[str], nullable: frozenset[str]) -> Iterator[str]:
    """What is wrong with the values of a signal that negatives of the strategies `having`, and no others, have."""
    fields = dict(_of_negatives(table))
    if not {"strategy", "similarity"} <= fields.keys():
        return
    similarity = fields["similarity"]
    there = {_similarity(f.name): _there(v) for f, v in zip(similarity.type, similarity.flatten(), strict=True)}
    if path not in there:
        return
    must = np.isin(np.array(fields["strategy"].to_pylist(), dtype=object), list(having))
    if (must & ~there[path]).any() and not _may_be_null(path, nullable):
        yield f"{(must & ~there[path]).sum()} of {path} are null for negatives of {', '.join(having)}"
    if (there[path] & ~must).any():
        yield f"{(there[path] & ~must).sum()} of {path} are values for negatives that are not of {', '.join(having)}"


def _there(values: Any) -> np.ndarray:
    """Where an Arrow array is not null."""
    return values.is_valid().to_numpy(zero_copy_only=False)


def _may_be_null(path: str, nullable: Collection[str]) -> bool:
    return any(f"{path}.".startswith(f"{known}.") for known in nullable)


def _nulls(array: Any, path: str, nullable: frozenset[str]) -> Iterator[tuple[str, int]]:
    if array.null_count:
        if not _may_be_null(path, nullable):
            yield path, array.null_count
        array = array.drop_null()
    if pa.types.is_list(array.type):
        yield from _nulls(array.flatten(), f"{path}[]", nullable)
    elif pa.types.is_struct(array.type):
        for field, values in zip(array.type, array.flatten(), strict=True):
            yield from _nulls(values, f"{path}.{field.name}", nullable)


def array_of(column: Any) -> Any:
    """A column of a table, or an array, as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
