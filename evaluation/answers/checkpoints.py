"""The checkpoints that are compared, and the prompts that all of them take."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.command.errors import UserError
from data.command.wording import counted
from data.models import architecture, check_causal, context_length, warn_of_cap
from data.schema import Group
from data.sources.examples import Example
from data.sources.tasks import task_of
from evaluation.answers.cache import Store
from evaluation.answers.generations import identify_model
from evaluation.answers.prompts import Prompts, read_prompts
from evaluation.answers.weights import identify_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """One model of the comparison.

    Attributes:
        path: its directory or hub id.
        identity: what decides its answers, see `evaluation.answers.generations.identify_model`.
        context: in tokens.
        groups: the prompts, tokenised by its own tokenizer; the same prompts in the same order for all checkpoints.
    """

    name: str
    path: str
    identity: dict[str, str]
    context: int
    groups: list[Group]


def load_checkpoints(
    models: Mapping[str, str],
    examples: Sequence[Example],
    task: str,
    where: str,
    store: Store,
    longest: int | None = None,
) -> list[Checkpoint]:
    """Identify the models and tokenise the prompts, without loading weights.

    Models with other contexts or tokenizers reject other rows: they are compared on the rows that all of them take. A
    text that is to be continued is cut once, by the first model's tokenizer and for the shortest of the contexts: a
    long one may then not fit for a tokenizer that makes more tokens of it.

    Args:
        models: name -> path.
        where: the data set's name, for messages.
        store: see `identify_model`.
        longest: prompt and answer in tokens, at most; None: the models' contexts.

    Raises:
        UserError: a model cannot be used, or no row fits all of them.
    """
    for path in models.values():
        check_causal(path)
    contexts = {name: context_length(path, longest) for name, path in models.items()}
    warn_of_cap(longest, contexts)
    read = _read_for_all(models, contexts, examples, task, where, store)
    common = set.intersection(*({g.id for g in prompts.groups} for prompts, _ in read.values()))
    if not common:
        raise UserError(f"no row of data set '{where}' fits all of the models. Compare fewer models.")
    said: dict[str, list[str]] = {}
    for name, (prompts, _) in read.items():
        said.setdefault(f"{counted(len(prompts.groups), 'prompt')}, {prompts.rejected}", []).append(name)
    for what, names in said.items():
        log.info("%s: %s", where if len(said) == 1 else ", ".join(names), what)
    if len(said) > 1:
        log.info("compared on the %s that all of them take", counted(len(common), "prompt"))
    found: list[Checkpoint] = []
    for name, (prompts, context) in read.items():
        identity = identify_model(models[name], prompts.tokenizer_sha256, store, prompts.reading)
        kept = [g for g in prompts.groups if g.id in common]
        found.append(Checkpoint(name, models[name], identity, context, kept))
    return found


def _read_for_all(
    models: Mapping[str, str],
    contexts: Mapping[str, int],
    examples: Sequence[Example],
    task: str,
    where: str,
    store: Store,
) -> dict[str, tuple[Prompts, int]]:
    """Name -> the examples as its tokenizer reads them, and the context that they were read for."""
    if task_of(task).over_long != "truncate":
        return {
            name: (read_prompts(path, examples, task, contexts[name], where, store), contexts[name])
            for name, path in models.items()
        }
    shortest = min(contexts.values())
    found = {name: (read_prompts(p, examples, task, shortest, where, store), shortest) for name, p in models.items()}
    first, _ = next(iter(found.values()))
    pairs = [Example(g.id, g.prompt, g.response, g.split) for g in first.groups]
    for name, (prompts, _) in found.items():
        if prompts.tokenizer_sha256 != first.tokenizer_sha256:  # it would cut elsewhere
            other = read_prompts(models[name], pairs, "prompt-completion", contexts[name], where, store)
            found[name] = other, contexts[name]
    return found


def ensemble_of(model: Checkpoint, name: str, path: str, store: Store) -> Checkpoint:
    """A model's ensemble with another one, which has its settings, tokenizer and prompts, and other weights."""
    return replace(model, name=name, path=path, identity={**model.identity, **identify_weights(path, store)})


def describe(checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """Name -> path, hashes and architecture, for the report."""
    return {c.name: {"path": c.path, **c.identity, "architecture": architecture(c.path)} for c in checkpoints}
