"""Implicit rewards, and what is measured with them: pure functions of log-probabilities, [groups, K] in.

Candidate 0 is the ground truth. Training and evaluation measure with the same functions.
"""

from collections.abc import Sequence

import torch


def implicit_rewards(
    policy_logps: torch.Tensor, reference_logps: torch.Tensor, *, beta: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """h = beta * (policy - reference), reduced in float32 or wider; 0 where mask is False. All [groups, K]."""
    dtype = torch.promote_types(torch.promote_types(policy_logps.dtype, reference_logps.dtype), torch.float32)
    policy, reference = policy_logps.to(dtype), reference_logps.to(dtype)
    if mask is not None:
        policy, reference = policy.masked_fill(~mask, 0.0), reference.masked_fill(~mask, 0.0)
    return beta * (policy - reference)


def preference_metrics(
    policy_logps: torch.Tensor,
    reference_logps: torch.Tensor,
    ranks: torch.Tensor,
    *,
    beta: float,
    mask: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """What to watch in training, each a sum over groups' values ready to be averaged: [groups] per metric.

    Keys:
        logps/ground_truth: policy's log-probability of the ground truth, nats.
        logps/ground_truth_change: the same minus the reference's.
        rewards/margin: h of the ground truth minus the mean h of the negatives.
        rewards/top1: 1 where the ground truth has the strictly highest h.
        rewards/kendall_tau: Kendall's tau-a between h and the ranks over all pairs of candidates, in [-1, 1].
        logps/ranking_accuracy: share of negatives that the policy itself finds less likely than the ground truth.
    """
    exists = torch.ones_like(policy_logps, dtype=torch.bool) if mask is None else mask
    h = implicit_rewards(policy_logps, reference_logps, beta=beta, mask=mask)
    negatives = exists[:, 1:]
    count = negatives.sum(-1).clamp(min=1)
    pairs = exists[:, :, None] & exists[:, None, :]
    better = (ranks[:, :, None] < ranks[:, None, :]) & pairs
    agreement = torch.sign(h[:, :, None] - h[:, None, :])
    change = policy_logps.float() - reference_logps.float()
    return {
        "logps/ground_truth": policy_logps[:, 0].float(),
        "logps/ground_truth_change": change[:, 0],
        "rewards/margin": h[:, 0] - (h[:, 1:] * negatives).sum(-1) / count,
        "rewards/top1": ((h[:, :1] > h[:, 1:]) | ~negatives).all(-1).to(h.dtype),
        "rewards/kendall_tau": (agreement * better).sum((-1, -2)) / better.sum((-1, -2)).clamp(min=1),
        "logps/ranking_accuracy": ((policy_logps[:, :1] > policy_logps[:, 1:]) & negatives).sum(-1) / count,
    }


def strategy_metrics(
    policy_logps: torch.Tensor,
    reference_logps: torch.Tensor,
    ranks: torch.Tensor,
    strategy: torch.Tensor,
    names: Sequence[str],
    *,
    beta: float,
    mask: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """`preference_metrics`'s rewards against the negatives of one strategy at a time, e.g. "rewards/margin/an".

    Args:
        strategy: [groups, K], the place in `names` of each negative's strategy, -1 for the ground truth.

    Returns:
        [n] per metric, for the n groups that have negatives of the strategy.
    """
    exists = torch.ones_like(policy_logps, dtype=torch.bool) if mask is None else mask
    found = {}
    for code, name in enumerate(names):
        within = exists & (strategy == code)
        has = within.any(dim=-1)
        within[:, 0] = True
        metrics = preference_metrics(policy_logps[has], reference_logps[has], ranks[has], beta=beta, mask=within[has])
        found.update({f"{key}/{name}": values for key, values in metrics.items() if key.startswith("rewards/")})
    return found
