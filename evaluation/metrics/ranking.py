"""Measures of a checkpoint beside its answers: the ground truths' log-probability, its ranking of held-out groups."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from data.ranks import ranks_of
from data.schema import Group
from data.sources import facts
from evaluation.answers.cache import Store, hash_of
from evaluation.metrics.statistics import Estimate, share
from negatives_gen.models.engine import Sample

# Nats; about ten times what packing a group differently moves a sum of a thousand nats in float32.
ROUNDING = 1e-2


def correct(groups: Sequence[Group], answers: Sequence[Sample]) -> list[float]:
    """1 for each answer that code finds right, in the embedded world of facts; else 0."""
    return [float(facts.is_correct(g.prompt, a.text)) for g, a in zip(groups, answers, strict=True)]


def truth_logps(
    store: Store, identity: dict[str, str], groups: Sequence[Group], load: Callable[[], Any]
) -> list[float]:
    """Log-probability of each ground truth in nats, summed over its tokens.

    Args:
        identity: of the checkpoint.
        load: its `trainer.scoring.logprobs.Scorer` in float32; called only if the store lacks the numbers.
    """
    tokens = [(g.prompt_ids, [g.response_ids]) for g in groups]
    return [scores[0] for scores in _scores(store, identity, tokens, "float32", load)]


def candidate_logps(
    store: Store, identity: dict[str, str], groups: Sequence[Group], dtype: str, load: Callable[[], Any]
) -> list[list[float]]:
    """Log-probabilities of the candidates of held-out groups, the ground truth's first.

    Args:
        identity: of the checkpoint.
        dtype: that the reference scored them in; with another, what is rounded differently would pass for a preference.
        load: its `trainer.scoring.logprobs.Scorer` in dtype; called only if the store lacks the numbers.
    """
    tokens = [(g.prompt_ids, [g.response_ids, *(c.ids for c in g.negatives)]) for g in groups]
    return _scores(store, identity, tokens, dtype, load)


def truth_metrics(logps: Sequence[float], groups: Sequence[Group]) -> dict[str, Estimate]:
    """Log-probability of the ground truths in nats, per continuation and per token."""
    per_token = [logp / len(g.response_ids) for logp, g in zip(logps, groups, strict=True)]
    return {"truth_logp": Estimate.of(logps), "truth_logp_per_token": Estimate.of(per_token)}


def ranking_metrics(scores: Sequence[Sequence[float]], groups: Sequence[Group], signal: str) -> dict[str, Estimate]:
    """How a checkpoint ranks the candidates of held-out groups.

    ranking_accuracy: share of negatives less likely than their ground truth under the checkpoint itself.
    reward_top1: share of groups whose ground truth has the highest implicit reward (log-probability minus the
        reference's); 0 for the reference itself, whose rewards are all equal up to rounding.
    kendall_tau: between the implicit rewards and the order by similarity.

    Args:
        scores: from `candidate_logps`.
        signal: that the similarities are of.
    """
    import torch

    from trainer.objectives.rewards import preference_metrics

    values: dict[str, list[float]] = {"ranking_accuracy": [], "reward_top1": [], "kendall_tau": []}
    for group, score in zip(groups, scores, strict=True):
        reference = torch.tensor([[group.reference_logp, *(c.reference_logp for c in group.negatives)]])
        own = torch.tensor([list(score)])
        # float32 sums differ in their last digits between two layouts of the same group: that is no preference.
        rewards = torch.round((own - reference) / ROUNDING) * ROUNDING
        ranks = torch.tensor([[0, *ranks_of(group.negatives, signal)]])
        found = preference_metrics(rewards, torch.zeros_like(rewards), ranks, beta=1.0)
        likelier = preference_metrics(own, reference, ranks, beta=1.0)["logps/ranking_accuracy"]
        values["ranking_accuracy"].append(likelier.item())
        values["reward_top1"].append(found["rewards/top1"].item())
        values["kendall_tau"].append(found["rewards/kendall_tau"].item())
    mean = {"kendall_tau": Estimate.of}
    return {name: mean.get(name, share)(numbers) for name, numbers in values.items()}


def _scores(
    store: Store,
    identity: dict[str, str],
    tokens: Sequence[tuple[list[int], list[list[int]]]],
    dtype: str,
    load: Callable[[], Any],
) -> list[list[float]]:
    def make() -> pa.Table:
        from trainer.scoring.packing import Continuations

        return pa.table({"logps": load().score([Continuations(*group) for group in tokens])})

    key = {**identity, "tokens_sha256": hash_of({"tokens": tokens}), "dtype": dtype}
    return store.get_or_make("logps", key, make)["logps"].to_pylist()
