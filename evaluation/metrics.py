"""Measurements of one checkpoint: its answers, the ground truths' log-probabilities, its ranking of held-out groups."""

from collections.abc import Sequence

import torch

from data import facts
from data.schema import Group
from evaluation.statistics import Estimate
from negatives_gen.engine import Sample
from trainer.logprobs import Scorer
from trainer.objectives import preference_metrics, ranks_from_similarity
from trainer.packing import Continuations


def answer_metrics(groups: Sequence[Group], answers: Sequence[Sample], *, checkable: bool) -> dict[str, Estimate]:
    """Of greedy answers: share correct (where code can check it), length, share that hit the length limit."""
    metrics = {
        "answer_tokens": Estimate.of([len(a.ids) for a in answers]),
        "hit_limit": Estimate.of([float(a.finish_reason == "length") for a in answers]),
    }
    if checkable:
        correct = [float(facts.is_correct(g.prompt, a.text)) for g, a in zip(groups, answers, strict=True)]
        metrics = {"correct": Estimate.of(correct), **metrics}
    return metrics


def truth_metrics(scorer: Scorer, groups: Sequence[Group]) -> dict[str, Estimate]:
    """Of the ground truths: log-probability per continuation in nats, and per token."""
    scores = scorer.score([Continuations(g.prompt_ids, [g.response_ids]) for g in groups])
    sums = [score[0] for score in scores]
    per_token = [logp / len(g.response_ids) for logp, g in zip(sums, groups, strict=True)]
    return {"truth_logp": Estimate.of(sums), "truth_logp_per_token": Estimate.of(per_token)}


def ranking_metrics(scorer: Scorer, groups: Sequence[Group], signal: str) -> dict[str, Estimate]:
    """How a checkpoint ranks the candidates of held-out groups.

    ranking_accuracy: share of negatives less likely than their ground truth under the checkpoint itself.
    reward_top1: share of groups whose ground truth has the highest implicit reward (log-probability minus the
        reference's); 0 for the reference itself, whose rewards are all equal up to rounding.
    kendall_tau: between the implicit rewards and the order by similarity.
    """
    continuations = [Continuations(g.prompt_ids, [g.response_ids, *(c.ids for c in g.negatives)]) for g in groups]
    scores = scorer.score(continuations)
    values: dict[str, list[float]] = {"ranking_accuracy": [], "reward_top1": [], "kendall_tau": []}
    for group, score in zip(groups, scores, strict=True):
        reference = torch.tensor([[group.reference_logp, *(c.reference_logp for c in group.negatives)]])
        similarity = torch.tensor([[1.0, *(c.similarity[signal] for c in group.negatives)]])
        # float32 sums differ in their last digits between two layouts of the same group: that is no preference.
        rewards = torch.round((torch.tensor([score]) - reference) / ROUNDING) * ROUNDING
        ranks = ranks_from_similarity(similarity)
        found = preference_metrics(reference + rewards, reference, ranks, beta=1.0)
        values["ranking_accuracy"].append(
            preference_metrics(torch.tensor([score]), reference, ranks, beta=1.0)["logps/ranking_accuracy"].item()
        )
        values["reward_top1"].append(found["rewards/top1"].item())
        values["kendall_tau"].append(found["rewards/kendall_tau"].item())
    return {name: Estimate.of(numbers) for name, numbers in values.items()}


# Nats; about ten times what packing a group differently moves a sum of a thousand nats in float32.
ROUNDING = 1e-2
