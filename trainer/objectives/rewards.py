"""Implicit rewards, and what is measured with them: pure functions of log-probabilities, [groups, K] in.

Candidate 0 is the ground truth. Training and evaluation measure with the same functions. `beta` is a number, or
[groups, K] where each candidate has its own (h per token: beta / tokens).
"""

from collections.abc import Sequence

import torch

from data.ranks import UNRANKED

Beta = float | torch.Tensor
# A group is decided where the softmax over its candidates gives the ground truth more than this.
SURE = 0.99


def implicit_rewards(
    policy_logps: torch.Tensor, reference_logps: torch.Tensor, *, beta: Beta, mask: torch.Tensor | None = None
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
    beta: Beta,
    mask: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """What to watch in training, each a value per group ready to be averaged: [groups], of tau those that have one.

    Keys:
        logps/ground_truth: policy's log-probability of the ground truth, nats.
        logps/ground_truth_change: the same minus the reference's.
        logps/ground_truth_change_square: its square, so that a log says how far groups differ in it.
        rewards/margin: h of the ground truth minus the mean h of the negatives.
        rewards/top1: 1 where the ground truth has the strictly highest h.
        rewards/kendall_tau: Kendall's tau-a between h and the ranks over all pairs of candidates that have a rank, in
            [-1, 1], of the groups with such a pair.
        logps/ranking_accuracy: share of negatives that the policy itself finds less likely than the ground truth.
    """
    exists = torch.ones_like(policy_logps, dtype=torch.bool) if mask is None else mask
    h = implicit_rewards(policy_logps, reference_logps, beta=beta, mask=mask)
    negatives = exists[:, 1:]
    count = negatives.sum(-1).clamp(min=1)
    ranked = exists & (ranks != UNRANKED)
    pairs = ranked[:, :, None] & ranked[:, None, :]
    better = (ranks[:, :, None] < ranks[:, None, :]) & pairs
    number = better.sum((-1, -2))
    agreement = torch.sign(h[:, :, None] - h[:, None, :])
    change = policy_logps.float() - reference_logps.float()
    return {
        "logps/ground_truth": policy_logps[:, 0].float(),
        "logps/ground_truth_change": change[:, 0],
        "logps/ground_truth_change_square": change[:, 0].square(),
        "rewards/margin": h[:, 0] - (h[:, 1:] * negatives).sum(-1) / count,
        "rewards/top1": ((h[:, :1] > h[:, 1:]) | ~negatives).all(-1).to(h.dtype),
        "rewards/kendall_tau": ((agreement * better).sum((-1, -2)) / number)[number > 0],
        "logps/ranking_accuracy": ((policy_logps[:, :1] > policy_logps[:, 1:]) & negatives).sum(-1) / count,
    }


def strategy_metrics(
    policy_logps: torch.Tensor,
    reference_logps: torch.Tensor,
    ranks: torch.Tensor,
    strategy: torch.Tensor,
    names: Sequence[str],
    *,
    beta: Beta,
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
        own = beta[has] if isinstance(beta, torch.Tensor) else beta
        metrics = preference_metrics(policy_logps[has], reference_logps[has], ranks[has], beta=own, mask=within[has])
        found.update({f"{key}/{name}": values for key, values in metrics.items() if key.startswith("rewards/")})
    return found


def log_shares(h: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Log of the softmax over a group's candidates, [groups, K]; -inf where mask is False."""
    return torch.log_softmax(h if mask is None else h.masked_fill(~mask, -torch.inf), dim=-1)


def contrast_metrics(
    policy_logps: torch.Tensor, reference_logps: torch.Tensor, *, beta: Beta, mask: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """How much there is left to learn from the candidates, [groups] per metric.

    Keys:
        contrast/effective_candidates: exp of the entropy of the softmax over the candidates' h: K while the policy is
            the reference, 1 where one candidate has all of it.
        contrast/spread: standard deviation of h over the candidates.
        contrast/decided: 1 where the softmax gives the ground truth more than `SURE`.
    """
    exists = torch.ones_like(policy_logps, dtype=torch.bool) if mask is None else mask
    h = implicit_rewards(policy_logps, reference_logps, beta=beta, mask=mask)
    shares = log_shares(h, mask).exp()
    count = exists.sum(-1, keepdim=True)
    deviation = (h - h.sum(-1, keepdim=True) / count) * exists
    return {
        "contrast/effective_candidates": torch.special.entr(shares).sum(-1).exp(),
        "contrast/spread": (deviation.square().sum(-1) / count[:, 0]).sqrt(),
        "contrast/decided": (shares[:, 0] > SURE).to(h.dtype),
    }


def h_per_token(
    policy_logps: torch.Tensor,
    reference_logps: torch.Tensor,
    lengths: torch.Tensor,
    *,
    beta: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mean of |h| / tokens over a group's candidates, [groups]: how far a token has moved, times beta.

    Args:
        lengths: [groups, K], tokens of each candidate.
    """
    exists = torch.ones_like(policy_logps, dtype=torch.bool) if mask is None else mask
    h = implicit_rewards(policy_logps, reference_logps, beta=beta, mask=mask)
    return (h.abs() / lengths.clamp(min=1)).sum(-1) / exists.sum(-1)


def kl_bound(
    policy_logps: torch.Tensor, reference_logps: torch.Tensor, *, beta: Beta, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """log K less the best-of-K loss of each group, [groups], in nats.

    Its mean is a lower bound on KL(P || A), P the distribution of the ground truths and A that of negatives drawn
    independently, on groups that were not trained on; never above log K (InfoNCE, arXiv 1807.03748).
    """
    exists = torch.ones_like(policy_logps, dtype=torch.bool) if mask is None else mask
    h = implicit_rewards(policy_logps, reference_logps, beta=beta, mask=mask)
    return exists.sum(-1).to(h.dtype).log() + log_shares(h, mask)[:, 0]
