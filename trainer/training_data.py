"""What a run trains on and what it is watched on, opened and checked."""

import logging
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Subset

from data.errors import UserError
from data.shards import NegativeSet
from trainer.config import ScriptArguments
from trainer.dataset import ContrastiveGroups, GroundTruths
from trainer.store import GroupStore

log = logging.getLogger(__name__)

GROUND_TRUTHS_ALONE = ("mle", "pss")


@dataclass
class TrainingData:
    """Data sets and what identifies them.

    Attributes:
        train: groups to train on.
        held_out: groups to watch, or None.
        source: checksums: a checkpoint may be resumed on the same data only.
        scored: in which (dtype, layout) the reference scored the groups; empty for ground truths alone.
    """

    train: Any
    held_out: Any
    source: dict[str, Any]
    scored: list[tuple[str, str]]


def load_training_data(
    script: ScriptArguments, tokenizer: Any, identity: dict[str, Any], *, seed: int, watched: bool
) -> TrainingData:
    """Open the negative sets, or read the examples of `--dataset`.

    Args:
        identity: hashes of the model to train, `weights_sha256` and `tokenizer_sha256`.
        seed: of random choices of negatives.
        watched: whether held-out groups are wanted.

    Raises:
        UserError: no such data, sets of another model or tokenizer, or no group left.
    """
    scored: set[tuple[str, str]] = set()
    if script.shards:
        sets = _opened(script.shards, script, identity)
        groups = _groups(sets, script, script.split, seed)
        held_out = None
        if watched:
            others = _opened(script.eval_shards, script, identity) if script.eval_shards else sets
            held_out = _groups(others, script, script.eval_split, seed)
        source: dict[str, Any] = {"shards": [s.sha256 for one in sets for s in one.manifest.shards]}
        if script.objective not in GROUND_TRUTHS_ALONE:
            manifests = [one.manifest for one in sets]
            scored = {(m.job["model"]["scorer_dtype"], shard.attention_path) for m in manifests for shard in m.shards}
    else:
        groups, source = _ground_truths(script, script.split, tokenizer)
        held_out = _ground_truths(script, script.eval_split, tokenizer)[0] if watched else None
    if held_out is not None and script.max_eval_samples is not None:
        held_out = Subset(held_out, range(min(script.max_eval_samples, len(held_out))))  # type: ignore[arg-type]
    return TrainingData(groups, held_out, source, sorted(scored))


def _opened(paths: list[str], script: ScriptArguments, identity: dict[str, Any]) -> list[NegativeSet]:
    """The sets, of which each must be of this tokenizer, and for a contrast of this reference."""
    assert script.model is not None
    sets = [NegativeSet(path) for path in paths]
    _refuse_same_groups(sets)
    for negatives in sets:
        negatives.check_tokenizer(identity["tokenizer_sha256"], script.model)
        if script.objective not in GROUND_TRUTHS_ALONE:
            negatives.check_reference(identity["weights_sha256"], script.model)
    return sets


def _groups(sets: list[NegativeSet], script: ScriptArguments, split: str, seed: int) -> ContrastiveGroups:
    if script.objective in GROUND_TRUTHS_ALONE:
        return ContrastiveGroups(GroupStore(sets, split))
    return ContrastiveGroups.of(
        sets,
        split,
        script.use,
        script.rank_by,
        min_similarity=script.min_similarity,
        max_similarity=script.max_similarity,
        seed=seed,
    )


def _ground_truths(script: ScriptArguments, split: str, tokenizer: Any) -> tuple[GroundTruths, dict[str, Any]]:
    from data.identity import context_length
    from data.prepare import describe_rejects, prepare_groups, require_groups
    from data.sources import fingerprint, load_examples

    assert script.dataset is not None
    assert script.model is not None
    examples = load_examples(script.dataset, script.task, split)
    groups, rejects, _ = prepare_groups(examples, script.task, tokenizer, context_length(script.model))
    require_groups(groups, rejects, f"data set '{script.dataset}'")
    if rejects:
        log.warning("%d rows read, %s", len(examples), describe_rejects(rejects))
    return GroundTruths(groups), {"examples_sha256": fingerprint(examples)}


def _refuse_same_groups(sets: list[NegativeSet]) -> None:
    """Raise UserError if a set is given twice: its groups would count twice."""
    seen: dict[str, str] = {}
    for negatives in sets:
        for shard in negatives.manifest.shards:
            if shard.sha256 in seen:
                raise UserError(
                    f"'{negatives.folder.path}' and '{seen[shard.sha256]}' hold the same shard. Give each set once."
                )
        seen.update({shard.sha256: negatives.folder.path for shard in negatives.manifest.shards})
