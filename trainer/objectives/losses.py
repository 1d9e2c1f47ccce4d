"""The objectives' losses, as pure functions of log-probabilities: tensors of shape [groups, K] in, a scalar out.

Candidate 0 is the ground truth. With beta the temperature, h_k = beta * (log pi_theta(y_k|x) - log pi_ref(y_k|x)).
"CPO" here is Contrastive Preference Optimization (arXiv 2502.16433): K-way and with a reference model. It is not
TRL's CPO (Xu et al., arXiv 2401.08417).
"""

import torch
from torch.nn.functional import logsigmoid

from trainer.objectives.rewards import Beta, implicit_rewards


def cpo_loss(
    policy_logps: torch.Tensor,
    reference_logps: torch.Tensor,
    *,
    beta: Beta,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """CPO, best of K: the mean over groups of -log softmax(h)_1 (paper eq. 7; arXiv eq. 1).

    With K = 2 it is DPO, -log sigmoid(h_1 - h_2). With policy = reference it is log K.

    Args:
        policy_logps, reference_logps: [groups, K], summed over each continuation's tokens, in nats.
        beta: temperature, the paper's beta (5 in its experiments); [groups, K] where each candidate has its own.
        mask: [groups, K], True where a candidate exists; candidate 0 always does. None: all exist.

    Returns:
        Scalar, float32 or wider.
    """
    h = implicit_rewards(policy_logps, reference_logps, beta=beta, mask=mask)
    if mask is not None:
        h = h.masked_fill(~mask, -torch.inf)
    return (torch.logsumexp(h, dim=-1) - h[:, 0]).mean()


def cpo_ranking_loss(
    policy_logps: torch.Tensor,
    reference_logps: torch.Tensor,
    ranks: torch.Tensor,
    *,
    beta: Beta,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """CPO with ranking, Plackett-Luce (paper eq. 8; arXiv eq. 2).

    The mean over groups of -sum_k [h_tau(k) - logsumexp_{j >= k} h_tau(j)], tau the order from best to worst.
    With policy = reference it is log K!.

    Args:
        policy_logps, reference_logps, beta, mask: as in `cpo_loss`.
        ranks: [groups, K], 0 = best; equal ranks keep the candidates' order.

    Returns:
        Scalar, float32 or wider.
    """
    h = implicit_rewards(policy_logps, reference_logps, beta=beta, mask=mask)
    exists = torch.ones_like(h, dtype=torch.bool) if mask is None else mask
    # Candidates that do not exist go last, where they neither win a place nor compete for one.
    last = torch.iinfo(torch.int64).max
    order = ranks.to(torch.int64).masked_fill(~exists, last).argsort(dim=-1, stable=True)
    h, exists = h.gather(-1, order), exists.gather(-1, order)
    # K x K: row k competes against columns j >= k. K is small, and this is exact where a cumulative
    # logsumexp would lose the small terms behind a large one.
    places = torch.arange(h.shape[-1], device=h.device)
    competes = exists[:, None, :] & (places[None, :] >= places[:, None])[None]
    # Places without a candidate are dropped below. Until then all compete for them: the logsumexp of nothing has
    # gradient nan, which `masked_fill` would drop too, but at which torch's anomaly detection stops.
    competes = competes | ~exists[:, :, None]
    normalisers = torch.logsumexp(h[:, None, :].masked_fill(~competes, -torch.inf), dim=-1)
    return (normalisers - h).masked_fill(~exists, 0.0).sum(dim=-1).mean()


def nca_loss(
    policy_logps: torch.Tensor,
    reference_logps: torch.Tensor,
    *,
    beta: Beta,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """NCA for one ground truth: the mean over groups of -log sigmoid(h_1) - mean over negatives of log sigmoid(-h_k).

    NCA (arXiv 2402.05369) draws all K candidates from one model and weighs them by their rewards in the first term, by
    1/K in the second. Here the ground truth is a draw of the data (weight 1), the K-1 negatives are draws of the noise
    (1/(K-1) each), so that the optimum of a free h is log P/A itself, where that of a softmax is so up to a constant:
    each candidate's own likelihood counts. A policy, whose probabilities sum to one, has this h where beta = 1 and the
    reference is A, and comes near it elsewhere. With policy = reference it is 2 log 2.

    Args:
        policy_logps, reference_logps, beta, mask: as in `cpo_loss`. A group without negatives has the first term alone.

    Returns:
        Scalar, float32 or wider.
    """
    h = implicit_rewards(policy_logps, reference_logps, beta=beta, mask=mask)
    negatives = torch.ones_like(h[:, 1:], dtype=torch.bool) if mask is None else mask[:, 1:]
    noise = (logsigmoid(-h[:, 1:]) * negatives).sum(-1) / negatives.sum(-1).clamp(min=1)
    return -(logsigmoid(h[:, 0]) + noise).mean()


def mle_loss(policy_logps: torch.Tensor, num_tokens: torch.Tensor | int) -> torch.Tensor:
    """Next-token prediction on the ground truths: negative log-likelihood per token (paper eq. 1).

    Args:
        policy_logps: [groups, K]; candidate 0 counts.
        num_tokens: tokens of the ground truths, all groups together.

    Returns:
        Scalar, nats per token, float32 or wider.
    """
    policy = policy_logps[:, 0].to(torch.promote_types(policy_logps.dtype, torch.float32))
    return -policy.sum() / num_tokens


def pss_loss(policy_logps: torch.Tensor, num_tokens: torch.Tensor | int) -> torch.Tensor:
    """Next-token prediction of the gold tokens from mixed inputs (parallel scheduled sampling, arXiv 1906.04331).

    Args:
        policy_logps: [groups, mixtures], of the same ground truth from different inputs.
        num_tokens: tokens of the ground truths, each counted once, all groups together.

    Returns:
        Scalar, nats per token, a mean over mixtures; float32 or wider.
    """
    policy = policy_logps.to(torch.promote_types(policy_logps.dtype, torch.float32))
    return -policy.mean(dim=-1).sum() / num_tokens
