"""What a run trains on and what it is watched on, opened and checked."""

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Subset

from data.command.errors import UserError
from data.command.wording import counted, is_or_are
from data.models import context_length, hash_of_all_weights, model_directory, vocabulary_size, warn_of_cap
from data.shards import NegativeSet, warn_of_lending
from trainer.config import ScriptArguments
from trainer.groups.choice import Choice, short_names
from trainer.groups.dataset import ContrastiveGroups, GroundTruths
from trainer.groups.store import ANOTHER_SPLIT, GroupStore
from trainer.ingredients import TrainingData

log = logging.getLogger(__name__)

OTHER_HELD_OUT = "Watch another half with --eval_split, or other sets with --eval_shards."


def load_training_data(
    script: ScriptArguments, tokenizer: Any, identity: dict[str, Any], *, seed: int, watched: bool
) -> TrainingData:
    """Open the negative sets, or read the examples of `--dataset`.

    Args:
        identity: hashes of the model to train, `weights_sha256` and `tokenizer_sha256`; without the first the sets'
            reference is not compared with it.
        seed: of random choices of negatives.
        watched: whether held-out groups are wanted.

    Raises:
        UserError: no such data, sets of another model or tokenizer, the same group in two sets, or no group left.
    """
    scored: list[tuple[str, str]] = []
    use, rank_by = script.negatives, script.rank_by
    if script.shards:
        sets = _opened(script.shards, script, identity)
        groups = _groups(sets, script, script.split, seed, ANOTHER_SPLIT)
        use, rank_by = short_names(sets, use, rank_by)
        _refuse_repeated(groups.store, "--shards")
        held_out, others = None, sets
        if watched:
            others = _opened(script.eval_shards, script, identity) if script.eval_shards else sets
            held_out = _groups(others, script, script.eval_split, seed, OTHER_HELD_OUT)
            _refuse_repeated(held_out.store, "--eval_shards" if script.eval_shards else "--shards")
            if script.eval_shards:
                _refuse_trained_on(held_out.store, groups.store)
        source: dict[str, Any] = {"shards": _checksums(sets)}
        if script.early_stopping_patience and script.eval_shards:  # else the held-out groups decide nothing
            source["eval_shards"] = _checksums(others)
        scored = groups.scored
    else:
        context = context_length(script.model, script.max_length)
        warn_of_cap(script.max_length, {script.model: context})
        groups, source = _ground_truths(script, script.split, tokenizer, context)
        held_out = _ground_truths(script, script.eval_split, tokenizer, context, again=True)[0] if watched else None
    if held_out is not None and script.max_eval_samples is not None:
        held_out = Subset(held_out, range(min(script.max_eval_samples, len(held_out))))  # type: ignore[arg-type]
    return TrainingData(groups, held_out, source, scored, use, rank_by)


def _checksums(sets: list[NegativeSet]) -> list[str]:
    return [shard.sha256 for one in sets for shard in one.manifest.shards]


def _opened(paths: list[str], script: ScriptArguments, identity: dict[str, Any]) -> list[NegativeSet]:
    """The sets, of which each must be of this tokenizer, and for a contrast of this reference."""
    sets = [NegativeSet(path) for path in paths]
    for negatives in sets:
        log.info("%s", negatives.summary)
        warn_of_lending(negatives)
    require_reference(sets, script.model, identity, truths_only=script.chosen.needs == "truths")
    return sets


def require_reference(
    sets: Sequence[NegativeSet], model: str, identity: Mapping[str, Any], *, truths_only: bool
) -> None:
    """Raise UserError for a set of another tokenizer than a model's, or, unless for truths only, another reference.

    Args:
        model: directory or hub id.
        identity: hashes of the model, `tokenizer_sha256` and, where its weights are there, `weights_sha256`.
    """
    rows, context = vocabulary_size(model), context_length(model, sys.maxsize)
    for negatives in sets:
        negatives.check_tokenizer(identity["tokenizer_sha256"], model)
        if not truths_only:
            if "weights_sha256" in identity:
                negatives.check_reference(identity["weights_sha256"], model, lambda: hash_of_all_weights(model))
            negatives.check_config(model_directory(model), model)
        negatives.compute_with(rows, context, truths_only=truths_only)


def _groups(sets: list[NegativeSet], script: ScriptArguments, split: str, seed: int, advice: str) -> ContrastiveGroups:
    choice = None
    if script.chosen.needs != "truths":
        choice = Choice.of(
            sets,
            script.negatives,
            script.rank_by,
            min_similarity=script.min_similarity,
            max_similarity=script.max_similarity,
            seed=seed,
            learns_order=script.chosen.learns_order,
        )
    return ContrastiveGroups(GroupStore(sets, split, advice, in_support=script.in_support), choice)


def _ground_truths(
    script: ScriptArguments, split: str, tokenizer: Any, context: int, *, again: bool = False
) -> tuple[GroundTruths, dict[str, Any]]:
    from data.sources.examples import fingerprint
    from data.sources.prepare import describe_rejects, prepare_groups, require_groups

    assert script.dataset is not None
    source = script.open_source(script.dataset, split, again=again)
    examples = list(source)
    groups, rejects, _ = prepare_groups(examples, script.task, tokenizer, context)
    require_groups(groups, rejects, f"data set '{script.dataset}'")
    log.info("split '%s': %s", split, counted(len(groups), "group"))
    if rejects:
        log.warning("split '%s': %s read, %s", split, counted(len(examples), "row"), describe_rejects(rejects))
    return GroundTruths(groups), {
        "examples_sha256": fingerprint(examples),
        **script.describe_source(source),
    }


def _refuse_repeated(store: GroupStore, option: str) -> None:
    """Raise UserError if two sets hold the same group: it would count twice. Of a single set, reads nothing."""
    if len(store.sets) == 1:
        return
    known: list[pa.ChunkedArray] = []
    for number, negatives in enumerate(store.sets):
        ids = store.ids(number)
        for other, theirs in zip(store.sets, known, strict=False):
            common = _common(ids, theirs)
            if common:
                raise UserError(
                    f"{counted(common, 'group')} of '{negatives.folder.path}' {is_or_are(common)} in "
                    f"'{other.folder.path}' too, and would count twice. Give {option} one of the two."
                )
        known.append(ids)


def _refuse_trained_on(held_out: GroupStore, train: GroupStore) -> None:
    """Raise UserError if groups to watch are trained on."""
    trained_on = [train.ids(number) for number in range(len(train.sets))]
    for number, negatives in enumerate(held_out.sets):
        ids = held_out.ids(number)
        common = sum(_common(ids, theirs) for theirs in trained_on)
        if common:
            raise UserError(
                f"{common} of {counted(len(ids), 'group')} of '{negatives.folder.path}' in --eval_shards "
                f"{is_or_are(common)} trained on: their curve would say nothing. Choose other --eval_shards, or "
                "another --eval_split."
            )


def _common(ids: pa.ChunkedArray, others: pa.ChunkedArray) -> int:
    found = pc.is_in(ids, value_set=others.combine_chunks())  # type: ignore[attr-defined]  # made at run time
    return sum(chunk.true_count for chunk in found.chunks)
