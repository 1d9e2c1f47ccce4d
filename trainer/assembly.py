"""What a person gives `ContrastiveTrainer`, as it computes with it: objective, policy, groups."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Subset
from transformers import TrainingArguments

from data.architectures import embedding_rows, longest_sequence, of_text
from data.command.entries import check
from data.command.errors import UserError
from data.command.options import make_config
from data.models import check_causal, load_tokenizer, tokenizer_hash, weights_hash
from data.shards import NegativeSet
from trainer.groups.choice import Choice
from trainer.groups.dataset import ContrastiveGroups
from trainer.groups.sampler import data_seed
from trainer.groups.store import GroupStore
from trainer.groups.training_data import require_reference
from trainer.objectives import OBJECTIVES
from trainer.objectives.base import Objective


def chosen_objective(objective: "str | Objective", options: Any, given: Mapping[str, Any]) -> tuple[Objective, Any]:
    """The objective and an instance of its `Options`, checked.

    Args:
        objective: itself, its name, or `package.module:NAME`.
        options: such an instance; None: made of `given`.
        given: options by name.

    Raises:
        UserError: no such objective, one on pairs, or an option that it does not have or does not take.
    """
    chosen = OBJECTIVES.load(objective) if isinstance(objective, str) else objective
    if chosen.needs == "pairs":
        raise UserError(
            f"objective '{chosen.name}' trains on pairs, and ContrastiveTrainer on groups. Use `python -m trainer.run "
            f"--objective {chosen.name}`."
        )
    if options is None:
        options = make_config(chosen.Options, **given)
    elif given:
        raise UserError(f"'{min(given)}' and options are both given. Put it into the options.")
    check(options)
    return chosen, options


def loaded_model(model: Any, objective: Objective) -> Any:
    """A causal language model as the command loads it, or one that was loaded, without dropout unless it is to stay.

    Args:
        model: directory, hub id, or itself.

    Raises:
        UserError: no such model, or one that is no whole causal language model.
    """
    from trainer.policy import Policy
    from trainer.scoring.support import disable_dropout

    if isinstance(model, str | Path):
        from trl import ModelConfig

        return Policy(check_causal(str(model)), ModelConfig(), False, objective.dropout).load()
    if not objective.dropout:
        disable_dropout(model)
    return model


def as_groups(data: Any, split: str, objective: Objective, args: TrainingArguments) -> Any:
    """A negative set as the groups of one of its halves, with all its negatives; other data as they are."""
    if not isinstance(data, NegativeSet):
        return data
    if objective.needs == "truths":
        return ContrastiveGroups(GroupStore([data], split))
    choice = Choice.of([data], seed=data_seed(args), learns_order=objective.learns_order)
    return ContrastiveGroups(GroupStore([data], split), choice)


def check_sets(data: Sequence[Any], model: Any, tokenizer: Any, objective: Objective) -> dict[str, str]:
    """Hold the negative sets of some data to the model, before it is trained on them.

    A model that is named must be the sets' reference, by its hashes. Of one that was loaded only sizes are known; the
    trainer measures before the first step whether it is the reference.

    Args:
        data: groups, or parts of them.
        model: as it was given.
        tokenizer: None where it is not known.

    Returns:
        `weights_sha256` of a model that is named, `tokenizer_sha256` of a tokenizer.

    Raises:
        UserError: a set of another reference or tokenizer, or ids that the model does not take.
    """
    truths_only, sets = objective.needs == "truths", _sets_of(data)
    hashes = {"tokenizer_sha256": tokenizer_hash(tokenizer)} if tokenizer is not None else {}
    if isinstance(model, str | Path):
        weights = {"weights_sha256": weights_hash(str(model))}
        if sets:
            require_reference(sets, str(model), hashes if truths_only else hashes | weights, truths_only=truths_only)
        return hashes | weights
    config = of_text(model.config.to_dict())
    for negatives in sets:
        if hashes:
            negatives.check_tokenizer(hashes["tokenizer_sha256"], "processing_class")
        rows, context = embedding_rows(config), longest_sequence(config)
        takes = rows or negatives.vocabulary, context or negatives.context, truths_only
        if takes != (negatives.vocabulary, negatives.context, negatives.truths_only):  # else it was held to it by name
            negatives.compute_with(takes[0], takes[1], truths_only=truths_only)
    return hashes


def _sets_of(data: Sequence[Any]) -> list[NegativeSet]:
    stores = [getattr(one.dataset if isinstance(one, Subset) else one, "store", None) for one in data]
    return [negatives for store in stores if store is not None for negatives in store.sets]


def row_budget(row_tokens: int | None, device: str) -> int:
    """Tokens of a forward pass at most: what was asked for, else by the type of device ("cpu", "cuda")."""
    return row_tokens or (8192 if device == "cuda" else 1024)


def tokenizer_of(model: Any, processing_class: Any) -> Any:
    """The tokenizer that was given, else that of a model that is named; None of one that was loaded."""
    if processing_class is None and isinstance(model, str | Path):
        return load_tokenizer(str(model))
    return processing_class
