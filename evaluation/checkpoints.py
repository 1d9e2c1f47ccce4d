"""The checkpoints that are compared, and the prompts that all of them take."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.errors import UserError
from data.identity import check_model, context_length, load_tokenizer
from data.prepare import describe_rejects, prepare_groups, require_groups
from data.schema import Group
from data.sources import Example
from data.tasks import TASKS
from evaluation.generations import identify_model, identify_weights
from evaluation.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """One model of the comparison.

    Attributes:
        path: its directory or hub id.
        identity: what decides its answers, see `evaluation.generations.identify_model`.
        context: in tokens.
        groups: the prompts, tokenised by its own tokenizer; the same prompts in the same order for all checkpoints.
    """

    name: str
    path: str
    identity: dict[str, str]
    context: int
    groups: list[Group]


def load_checkpoints(
    models: Mapping[str, str], examples: Sequence[Example], task: str, where: str, store: Store
) -> list[Checkpoint]:
    """Identify the models and tokenise the prompts, without loading weights.

    Models with other contexts or tokenizers reject other rows: they are compared on the rows that all of them take. A
    text that is to be continued is cut once, by the first model's tokenizer and for the shortest of the contexts: a
    long one may then not fit for a tokenizer that makes more tokens of it.

    Args:
        models: name -> path.
        where: the data set's name, for messages.
        store: see `identify_model`.

    Raises:
        UserError: a model cannot be used, or no row fits all of them.
    """
    for path in models.values():
        check_model(path)
    prepared: dict[tuple[str, int], list[Group]] = {}
    found: list[Checkpoint] = []
    cut = TASKS[task].over_long == "truncate"
    shortest = min(map(context_length, models.values()))
    for name, path in models.items():
        tokenizer, context = load_tokenizer(path), context_length(path)
        identity = identify_model(path, tokenizer, store)
        if cut and (not found or identity["tokenizer_sha256"] == found[0].identity["tokenizer_sha256"]):
            context = shortest
        key = (identity["tokenizer_sha256"], context)
        if key not in prepared:
            groups, rejects, _ = prepare_groups(examples, task, tokenizer, context)
            require_groups(groups, rejects, f"data set '{where}'")
            if cut and not prepared:  # for the other tokenizers these are prompts and responses
                examples = [Example(g.id, g.prompt, g.response, g.split) for g in groups]
                task = "prompt-completion"
            prepared[key] = groups
            log.info("%s: %d examples, %s", name, len(groups), describe_rejects(rejects))
        found.append(Checkpoint(name, path, identity, context, prepared[key]))
    common = set.intersection(*({g.id for g in groups} for groups in prepared.values()))
    if not common:
        raise UserError(f"no row of data set '{where}' fits all of the models. Compare fewer models.")
    kept = {key: [g for g in groups if g.id in common] for key, groups in prepared.items()}
    return [replace(c, groups=kept[c.identity["tokenizer_sha256"], c.context]) for c in found]


def ensemble_of(model: Checkpoint, name: str, path: str, store: Store) -> Checkpoint:
    """A model's ensemble with another one, which has its settings, tokenizer and prompts, and other weights."""
    return replace(model, name=name, path=path, identity={**model.identity, **identify_weights(path, store)})


def describe(checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """Name -> path and hashes, for the report."""
    return {c.name: {"path": c.path, **c.identity} for c in checkpoints}
