"""The prompts as a model's tokenizer reads them, kept: a repeated evaluation then loads no tokenizer."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from data.models import load_tokenizer, tokenizer_hash
from data.schema import Group, group_from_row, groups_to_table
from data.sources.examples import Example
from data.sources.prepare import describe_rejects, prepare_groups, require_groups
from data.tokens import reading_of
from evaluation.answers.cache import Store, hash_of
from evaluation.answers.weights import tokenizer_settings

# Of how data.sources.tasks and data.sources.encode make tokens of an example: to be raised when that changes.
VERSION = 3
# Of the table's metadata.
TOKENIZER, READING, REJECTED = b"tokenizer_sha256", b"reading", b"rejected"


@dataclass(frozen=True)
class Prompts:
    """The prompts of an evaluation in tokens.

    Attributes:
        tokenizer_sha256: of the tokenizer that read them.
        reading: of it, see `data.tokens.reading_of`.
        groups: without negatives; those that could be used.
        rejected: how many could not, and why, in words.
    """

    tokenizer_sha256: str
    reading: str
    groups: list[Group]
    rejected: str


def read_prompts(model: str, examples: Sequence[Example], task: str, context: int, where: str, store: Store) -> Prompts:
    """Tokenise examples for a model, or take them from the store.

    Args:
        task: that the examples were read with.
        context: longest prompt with response in tokens.
        where: the data set's name, for messages.

    Raises:
        UserError: the model has no usable tokenizer, or no chat template that the examples need; no example is usable.
    """
    key = {
        "version": VERSION,
        **tokenizer_settings(model),
        "examples_sha256": hash_of({"examples": [dataclasses.astuple(example) for example in examples]}),
        "task": task,
        "context": context,
    }

    def make() -> pa.Table:
        tokenizer = load_tokenizer(model)
        groups, rejects, _ = prepare_groups(examples, task, tokenizer, context)
        require_groups(groups, rejects, f"data set '{where}'")
        found = {
            TOKENIZER: tokenizer_hash(tokenizer).encode(),
            READING: reading_of(tokenizer).encode(),
            REJECTED: describe_rejects(rejects).encode(),
        }
        return groups_to_table(groups, ["none"]).replace_schema_metadata(found)

    table = store.get_or_make("prompts", key, make)
    found = table.schema.metadata or {}
    groups = [group_from_row(row) for row in table.to_pylist()]
    return Prompts(found[TOKENIZER].decode(), found[READING].decode(), groups, found[REJECTED].decode())
