"""How a checkpoint ranks the candidates of held-out groups of a negative set."""

import functools
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from data.command.errors import UserError
from data.command.options import option, resolve_path
from data.command.wording import counted
from evaluation.metrics.base import HIGHER, MODEL, CheckpointMetric, Column, Request, Values
from trainer.groups.use import METAVAR, in_one_word, use_help

if TYPE_CHECKING:
    from data.schema import Group
    from data.shards import NegativeSet
    from evaluation.answers.checkpoints import Checkpoint
    from evaluation.subject import Evaluation
    from trainer.groups.choice import Choice

log = logging.getLogger(__name__)

ACCURACY, TOP_1, TAU = "ranking_accuracy", "reward_top1", "kendall_tau"
# Nats; about ten times what packing a group differently moves a sum of a thousand nats in float32.
ROUNDING = 1e-2


@dataclass(frozen=True)
class RankingOptions:
    """Options of metric `ranking`."""

    shards: str | None = option(None, "negative set whose groups of --split are ranked", metavar="DIR", is_name=True)
    use: list[str] | None = option(
        None, use_help(drawn="a draw by --seed", signal="the set's first ranking signal"), metavar=METAVAR
    )


class Ranking(CheckpointMetric):
    """How a checkpoint ranks candidates: by its log-probabilities, and by what they gained over the reference's."""

    name = "ranking"
    summary = "ranking of held-out groups of a negative set"
    order = 80
    Options = RankingOptions
    of_prompts = False
    columns = (
        Column(
            ACCURACY,
            "ranking accuracy",
            "{:.1%}",
            "share of held-out negatives that the model finds less likely than their ground truth",
            MODEL,
            better=HIGHER,
            share=True,
        ),
        Column(
            TOP_1,
            "reward top-1",
            "{:.1%}",
            "share of held-out groups whose ground truth gained the most log-probability over the reference",
            MODEL,
            better=HIGHER,
            share=True,
        ),
        Column(
            TAU,
            "Kendall's tau",
            "{:.3f}",
            "agreement of those gains with the order by similarity, -1 to 1, over the candidates that the set's first "
            "ranking signal has values for",
            MODEL,
            better=HIGHER,
        ),
    )
    record_schema: ClassVar = {"shards": {"type": ["object", "null"]}}

    @classmethod
    def needs(cls, options: RankingOptions, request: Request) -> str:
        return "" if options.shards else "--shards"

    @classmethod
    def summary_of(cls, record: Mapping[str, Any]) -> str:
        shards = record.get("shards") or {}
        if shards.get("groups") is None:
            return ""
        of_some = shards.get("kendall_tau")
        tau = (
            f" (Kendall's tau by {of_some['signal']}, over {', '.join(of_some['strategies'])} alone)" if of_some else ""
        )
        use = f", {shards['use']}" if shards.get("use") else ""
        return f"{counted(shards['groups'], 'group')} of {shards.get('name')}{use}{tau}"

    def __init__(self, options: RankingOptions, evaluation: "Evaluation"):
        super().__init__(options, evaluation)
        assert options.shards is not None  # needs
        self.held_out = read_held_out(
            options.shards, evaluation.split, evaluation.checkpoints, in_one_word(options.use), evaluation.seed
        )

    def identity(self) -> dict[str, Any]:
        return {"shards": self.held_out.record}

    def values(self, checkpoint: "Checkpoint", scorer: Callable[[str], Any]) -> Values:
        from evaluation.metrics.logps import candidate_logps

        held_out = self.held_out
        load = functools.partial(scorer, held_out.dtype)
        scores = candidate_logps(
            self.evaluation.store, checkpoint.identity, held_out.groups, held_out.dtype, load
        )  # fmt: skip
        found = ranking_values(scores, held_out.groups, held_out.signal)
        if checkpoint.identity.get("weights_sha256") == held_out.reference:
            return {ACCURACY: found[ACCURACY]}  # it gained nothing over itself, which says nothing of it
        return found


@dataclass(frozen=True)
class HeldOut:
    """Groups of a negative set that training has not seen.

    Attributes:
        dtype: that the reference scored them in.
        signal: that ranks them, those that it has values for.
        reference: SHA-256 of the weights of the model that scored them.
        record: what they are, for the report.
    """

    groups: "list[Group]"
    dtype: str
    signal: str
    reference: str
    record: dict[str, Any]


def read_held_out(
    shards: str, split: str, checkpoints: Sequence["Checkpoint"], use: str | None = None, seed: int = 0
) -> HeldOut:
    """The groups of a negative set that belong to a split, with the negatives that are asked for.

    Args:
        use: which negatives, as the trainer's --use; None: all. Groups that have none of them are left out and counted.
        seed: of a draw that it asks for.

    Raises:
        UserError: the path holds no negative set, or one of another tokenizer than a checkpoint's, or without such
            groups or negatives, or with numbers that are not finite or sequences that a checkpoint does not take.
    """
    from data.models import context_length, vocabulary_size
    from data.shards import NegativeSet, warn_of_lending
    from trainer.groups.choice import Choice

    negatives = NegativeSet(resolve_path(shards))
    choice = Choice.of([negatives], use, seed=seed) if use is not None else None
    log.info("%s", negatives.summary)
    warn_of_lending(negatives)
    sizes = [size for checkpoint in checkpoints if (size := vocabulary_size(checkpoint.path)) is not None]
    contexts = [context_length(checkpoint.path, sys.maxsize) for checkpoint in checkpoints]
    for checkpoint in checkpoints:
        negatives.check_tokenizer(checkpoint.identity["tokenizer_sha256"], checkpoint.path)
    negatives.compute_with(min(sizes, default=None), min(contexts, default=None))
    asked, seen, groups, bare = {g.id for checkpoint in checkpoints[:1] for g in checkpoint.groups}, 0, [], 0
    for group in chosen_groups(negatives, choice):
        seen += group.split == "train" and group.id in asked
        if split in ("all", group.split):
            lacking = choice is not None and not group.negatives
            bare += lacking
            groups += [] if lacking else [group]
    if seen:
        log.warning(
            "%s of %s lie in the training half of '%s': what was trained on it has seen them. Hold out the rows that "
            "it holds out, by its --test_share or --test_dataset.", f"{seen:,}", counted(len(asked), "prompt"), shards
        )  # fmt: skip
    if bare:
        log.warning("%s of '%s' left out: none of the negatives of --use %s", counted(bare, "group"), shards, use)
    if bare and not groups:
        raise UserError(f"no group of split '{split}' of '{shards}' has a negative of --use {use}. Choose others.")
    if not groups:
        raise UserError(
            f"negative set '{shards}' holds no groups of split '{split}'. Generate it with --split all or --split "
            f"{split}, or evaluate on another --split."
        )
    checksums = [shard.sha256 for shard in negatives.manifest.shards]
    reference = negatives.manifest.job["model"]
    dtype = reference["scorer_dtype"]
    record = {"name": shards, "groups": len(groups), "scorer_dtype": dtype, "sha256": checksums}
    if use is not None:
        record["use"] = use
    signal = negatives.signals[0]
    only_of = negatives.manifest.only_of.get(signal) or []
    if having := [name for name in only_of if choice is None or name in choice.counts]:
        record["kendall_tau"] = {"signal": signal, "strategies": list(having)}
    return HeldOut(groups, dtype, signal, reference["weights_sha256"], record)


def chosen_groups(negatives: "NegativeSet", choice: "Choice | None") -> Iterator["Group"]:
    """The groups of a set, of both halves, with those of their negatives that are chosen; None: with all."""
    for index in range(len(negatives.manifest.shards)):
        groups = negatives.shard(index)
        if choice is not None:
            for group, places in zip(groups, choice.places_in_groups(negatives, index), strict=True):
                group.negatives = [group.negatives[place] for place in places]
        yield from groups


def ranking_values(
    scores: Sequence[Sequence[float]], groups: Sequence["Group"], signal: str
) -> dict[str, list[float | None]]:
    """Ranking metrics of each held-out group, by column.

    ranking_accuracy: share of negatives less likely than their ground truth under the checkpoint itself.
    reward_top1: 1 if the ground truth has the highest implicit reward (log-probability minus the reference's), else 0;
        0 for the reference itself, whose rewards are all equal up to rounding.
    kendall_tau: between the implicit rewards and the order by similarity, over the ground truth and the negatives that
        have a value of the signal; None where a group has no such negative.

    Args:
        scores: from `evaluation.metrics.logps.candidate_logps`.
        signal: that the similarities are of.
    """
    import torch

    from data.ranks import known_ranks, similarities_of
    from trainer.objectives.rewards import preference_metrics

    values: dict[str, list[float | None]] = {ACCURACY: [], TOP_1: [], TAU: []}
    for group, score in zip(groups, scores, strict=True):
        reference = torch.tensor([[group.reference_logp, *(c.reference_logp for c in group.negatives)]])
        own = torch.tensor([list(score)])
        # float32 sums differ in their last digits between two layouts of the same group: that is no preference.
        rewards = torch.round((own - reference) / ROUNDING) * ROUNDING
        ranks = torch.from_numpy(known_ranks(similarities_of(group.negatives, signal)))[None]
        found = preference_metrics(rewards, torch.zeros_like(rewards), ranks, beta=1.0)
        likelier = preference_metrics(own, reference, ranks, beta=1.0)["logps/ranking_accuracy"]
        values[ACCURACY].append(likelier.item())
        values[TOP_1].append(found["rewards/top1"].item())
        values[TAU].append(next(iter(found["rewards/kendall_tau"].tolist()), None))
    return values


METRIC = Ranking
