"""The objectives against hand-computed values and against the formulas written out in plain Python."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from data.ranks import UNRANKED
from trainer.objectives.losses import cpo_loss, cpo_ranking_loss, mle_loss, nca_loss
from trainer.objectives.rewards import (
    contrast_metrics,
    h_per_token,
    implicit_rewards,
    kl_bound,
    preference_metrics,
    strategy_metrics,
)

# h = 2 * (policy - reference) = [1, 0, -2] for candidates 0, 1, 2.
POLICY = [-1.0, -2.0, -3.0]
REFERENCE = [-1.5, -2.0, -2.0]
BETA = 2.0

Loss = Callable[..., torch.Tensor]


def ranked(policy: torch.Tensor, reference: torch.Tensor, *, beta: float, mask: torch.Tensor | None = None):
    """`cpo_ranking_loss` with the candidates ranked in their order, to be tested alongside `cpo_loss`."""
    ranks = torch.arange(policy.shape[-1]).expand(policy.shape)
    return cpo_ranking_loss(policy, reference, ranks, beta=beta, mask=mask)


BOTH = pytest.mark.parametrize("loss", [cpo_loss, ranked], ids=["cpo", "ranking"])
EACH = pytest.mark.parametrize("loss", [cpo_loss, ranked, nca_loss], ids=["cpo", "ranking", "nca"])


def random_logps(groups: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(groups, k, generator=generator, dtype=torch.float64).to(dtype) - 3 for _ in range(2))


def plackett_luce(h: list[float], order: tuple[int, ...]) -> float:
    """P(order) = prod_k exp(h_tau(k)) / sum_{j >= k} exp(h_tau(j)), the product over the whole fraction."""
    probability = 1.0
    for k, best in enumerate(order):
        probability *= math.exp(h[best]) / sum(math.exp(h[j]) for j in order[k:])
    return probability


def ranks_of(order: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([[order.index(candidate) for candidate in range(len(order))]])


def test_implicit_rewards_are_beta_times_the_log_ratio():
    h = implicit_rewards(torch.tensor([POLICY]), torch.tensor([REFERENCE]), beta=BETA)
    assert h.tolist() == [[1.0, 0.0, -2.0]]


def test_cpo_with_three_candidates_by_hand():
    # sum of exp(h) = e^1 + e^0 + e^-2 = 2.718282 + 1 + 0.135335 = 3.853617; its log = 1.349012.
    # loss = -log softmax(h)_1 = 1.349012 - 1 = 0.349012
    loss = cpo_loss(torch.tensor([POLICY]), torch.tensor([REFERENCE]), beta=BETA)
    assert loss.item() == pytest.approx(0.349012, abs=1e-6)


def test_ranking_with_three_candidates_by_hand():
    # Ranks [0, 2, 1]: the order is candidate 0, 2, 1 with h = 1, -2, 0.
    # place 1: log(e^1 + e^-2 + e^0) - 1  = 1.349012 - 1 = 0.349012
    # place 2: log(e^-2 + e^0) - (-2)     = 0.126928 + 2 = 2.126928
    # place 3: log(e^0) - 0               = 0
    loss = cpo_ranking_loss(torch.tensor([POLICY]), torch.tensor([REFERENCE]), torch.tensor([[0, 2, 1]]), beta=BETA)
    assert loss.item() == pytest.approx(2.475940, abs=1e-6)


@BOTH
def test_two_candidates_are_dpo(loss: Loss):
    policy, reference = random_logps(6, 2)
    difference = (policy[:, 0] - reference[:, 0]) - (policy[:, 1] - reference[:, 1])
    dpo = -torch.nn.functional.logsigmoid(0.7 * difference).mean()
    torch.testing.assert_close(loss(policy, reference, beta=0.7), dpo, rtol=1e-12, atol=0)


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_policy_equal_to_reference_gives_log_k_and_log_k_factorial(k: int):
    policy, _ = random_logps(3, k)
    assert cpo_loss(policy, policy, beta=5.0).item() == pytest.approx(math.log(k), abs=1e-12)
    assert ranked(policy, policy, beta=5.0).item() == pytest.approx(math.log(math.factorial(k)), abs=1e-9)


def test_permuting_the_negatives_changes_nothing():
    policy, reference = random_logps(4, 5)
    ranks = torch.tensor([0, 3, 1, 4, 2]).expand(4, 5)
    columns = torch.tensor([0, 4, 2, 1, 3])
    moved = policy[:, columns], reference[:, columns]
    torch.testing.assert_close(cpo_loss(*moved, beta=2.0), cpo_loss(policy, reference, beta=2.0), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        cpo_ranking_loss(*moved, ranks[:, columns], beta=2.0),
        cpo_ranking_loss(policy, reference, ranks, beta=2.0),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_ranking_is_the_product_of_fractions_over_the_order(k: int):
    for seed in range(5):
        policy, reference = random_logps(1, k, seed)
        h = (1.5 * (policy - reference))[0].tolist()
        order = tuple(torch.randperm(k, generator=torch.Generator().manual_seed(seed)).tolist())
        loss = cpo_ranking_loss(policy, reference, ranks_of(order), beta=1.5)
        assert loss.item() == pytest.approx(-math.log(plackett_luce(h, order)), rel=1e-10)


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_probabilities_of_all_orders_sum_to_one(k: int):
    policy, reference = random_logps(1, k, seed=7)
    losses = [
        cpo_ranking_loss(policy, reference, ranks_of(order), beta=1.5).item()
        for order in itertools.permutations(range(k))
    ]
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1.0, rel=1e-10)


def test_equal_ranks_keep_the_order_of_the_candidates():
    policy, reference = random_logps(2, 4)
    tied = cpo_ranking_loss(policy, reference, torch.tensor([[0, 1, 1, 1]]).expand(2, 4), beta=1.0)
    assert tied.item() == ranked(policy, reference, beta=1.0).item()


@EACH
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_match_finite_differences(loss: Loss, masked: bool):
    policy, reference = random_logps(3, 4)
    mask = torch.tensor([[True] * 4, [True, False, True, False], [True, True, True, False]]) if masked else None
    policy.requires_grad_(True)
    reference.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda p, r: loss(p, r, beta=1.3, mask=mask), (policy, reference))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("loss", "value", "gradient"),
    # reference is [-10050, -10000, -10000], so h = 50 * [50, -100, 100] = [2500, -5000, 5000].
    # CPO: 5000 - 2500. Ranking: (5000 - 2500) + (5000 + 5000) + 0. The softmaxes are one-hot on the last.
    [(cpo_loss, 2500.0, [-50.0, 0.0, 50.0]), (ranked, 12500.0, [-50.0, -50.0, 100.0])],
    ids=["cpo", "ranking"],
)
def test_long_continuations_and_a_large_beta_stay_exact(
    loss: Loss, value: float, gradient: list[float], dtype: torch.dtype
):
    policy = torch.tensor([[-10000.0, -10100.0, -9900.0]], dtype=dtype, requires_grad=True)
    reference = torch.tensor([[-10050.0, -10000.0, -10000.0]], dtype=dtype)
    result = loss(policy, reference, beta=50.0)
    result.backward()
    assert result.item() == value
    assert policy.grad is not None
    assert policy.grad.tolist() == [gradient]


def test_small_terms_behind_a_large_one_are_not_lost():
    # h = [10000, 1, 0]: place 1 costs log(1 + e^-9999 + e^-10000) = 0, place 2 log(e^1 + e^0) - 1 = log(1 + e^-1).
    h = torch.tensor([[1e4, 1.0, 0.0]], dtype=torch.float32)
    assert ranked(h, torch.zeros_like(h), beta=1.0).item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-6)


@EACH
def test_bfloat16_inputs_are_reduced_in_float32(loss: Loss):
    policy, reference = random_logps(8, 5, dtype=torch.bfloat16)
    result = loss(policy, reference, beta=5.0)
    assert result.dtype == torch.float32
    assert result.item() == loss(policy.float(), reference.float(), beta=5.0).item()


@EACH
def test_a_masked_batch_is_the_mean_of_its_groups_computed_alone(loss: Loss):
    policy, reference = random_logps(4, 5)
    counts = [5, 1, 3, 2]
    mask = torch.arange(5) < torch.tensor(counts)[:, None]
    alone = [loss(policy[i : i + 1, :k], reference[i : i + 1, :k], beta=2.0) for i, k in enumerate(counts)]
    result = loss(policy, reference, beta=2.0, mask=mask)
    torch.testing.assert_close(result, torch.stack(alone).mean(), rtol=1e-12, atol=0)


@EACH
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_garbage_in_masked_slots_matters_neither_for_loss_nor_for_gradient(loss: Loss, garbage: float):
    mask = torch.tensor([[True, True, False, True], [True, False, False, True]])
    results = []
    for filler in (0.0, garbage):
        policy, reference = (x.masked_fill(~mask, filler) for x in random_logps(2, 4))
        policy.requires_grad_(True)
        value = loss(policy, reference, beta=2.0, mask=mask)
        value.backward()
        assert policy.grad is not None
        assert policy.grad[~mask].tolist() == [0.0] * 3
        results.append((value.item(), policy.grad.tolist()))
    assert results[0] == results[1]
    assert math.isfinite(results[0][0])


@EACH
def test_anomaly_detection_finds_nothing_in_masked_groups(loss: Loss):
    policy, reference = random_logps(2, 4)
    policy.requires_grad_(True)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        loss(policy, reference, beta=2.0, mask=mask).backward()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


def test_ranks_of_masked_candidates_do_not_matter():
    policy, reference = random_logps(1, 4)
    mask = torch.tensor([[True, False, True, True]])
    results = [
        cpo_ranking_loss(policy, reference, torch.tensor([[1, rank, 3, 2]]), beta=1.0, mask=mask).item()
        for rank in (-5, 0, 2, 99)
    ]
    assert len(set(results)) == 1


def test_preference_metrics_by_hand():
    nan = math.nan
    metrics = preference_metrics(
        torch.tensor([POLICY, [-4.0, -2.0, nan]]),
        torch.tensor([REFERENCE, [-4.0, -3.0, nan]]),
        torch.tensor([[0, 2, 1], [0, 1, 2]]),
        beta=BETA,
        mask=torch.tensor([[True, True, True], [True, True, False]]),
    )
    # h = [1, 0, -2] and [0, 2, -]
    expected = {
        "logps/ground_truth": [-1.0, -4.0],
        "logps/ground_truth_change": [0.5, 0.0],  # -1 + 1.5 and -4 + 4
        "logps/ground_truth_change_square": [0.25, 0.0],
        "rewards/margin": [2.0, -2.0],  # 1 - (0 - 2) / 2 and 0 - 2
        "rewards/top1": [1.0, 0.0],
        # By rank 0 > 2 > 1. By h 0 > 1, 0 > 2 agree, 2 > 1 does not: (1 + 1 - 1) / 3. Second group: one pair, wrong.
        "rewards/kendall_tau": [1 / 3, -1.0],
        "logps/ranking_accuracy": [1.0, 0.0],  # -1 above -2 and -3; -4 below -2
    }
    assert metrics.keys() == expected.keys()
    for name, values in expected.items():
        assert metrics[name].tolist() == pytest.approx(values, abs=1e-6), name


def test_kendalls_tau_is_over_the_candidates_that_have_a_rank():
    # h = [1, 0, -2]; the second negative has no rank. The second group has none at all, and gives no value.
    ranks = torch.tensor([[0, UNRANKED, 1], [0, UNRANKED, UNRANKED]])
    policy, reference = torch.tensor([POLICY, POLICY]), torch.tensor([REFERENCE, REFERENCE])
    found = preference_metrics(policy, reference, ranks, beta=BETA)
    assert found["rewards/kendall_tau"].tolist() == [1.0]
    assert found["rewards/top1"].tolist() == [1.0, 1.0]
    found = preference_metrics(-policy, -reference, ranks, beta=BETA)
    assert found["rewards/kendall_tau"].tolist() == [-1.0]


def test_preference_metrics_of_the_reference_itself_win_nothing():
    policy, _ = random_logps(2, 3)
    metrics = preference_metrics(policy, policy, torch.arange(3).expand(2, 3), beta=5.0)
    for name in ("logps/ground_truth_change", "rewards/margin", "rewards/top1", "rewards/kendall_tau"):
        assert metrics[name].tolist() == [0.0, 0.0], name


def test_mle_is_the_ground_truths_negative_log_likelihood_per_token():
    # -((-6) + (-3)) / 4 tokens; the negatives' -100 do not count.
    policy = torch.tensor([[-6.0, -100.0], [-3.0, -100.0]])
    assert mle_loss(policy, 4).item() == 2.25
    assert mle_loss(policy, torch.tensor(4)).item() == 2.25


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_mle_is_reduced_in_float32_or_wider(dtype: torch.dtype, wide: torch.dtype):
    # 512 + 3 = 515, which bfloat16 rounds to 516.
    loss = mle_loss(-torch.tensor([[512.0, 9.0], [3.0, 9.0]], dtype=dtype), 1)
    assert loss.dtype == wide
    assert loss.item() == 515.0


def test_strategy_metrics_are_the_metrics_against_one_strategys_negatives():
    policy = torch.tensor([[-1.0, -2.0, -3.0, -9.0], [-4.0, -1.0, -2.0, 0.0]])
    reference = torch.tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -3.0, -1.0, 0.0]])
    ranks = torch.tensor([[0, 2, 1, 3], [0, 1, 2, 3]])
    strategy = torch.tensor([[-1, 0, 0, 1], [-1, 0, 0, -1]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    # h / beta: [1, 0, -2, -8] and [0, 2, -1].
    found = strategy_metrics(policy, reference, ranks, strategy, ["an", "bn"], beta=2.0, mask=mask)
    assert found["rewards/margin/an"].tolist() == [2 * (1 - -1), 2 * (0 - 0.5)]
    assert found["rewards/top1/an"].tolist() == [1.0, 0.0]
    # Pairs in order of rank, group 1: truth > second (1 > -2), truth > first (1 > 0), second > first (-2 < 0).
    assert found["rewards/kendall_tau/an"].tolist() == pytest.approx([(1 + 1 - 1) / 3, (-1 + 1 + 1) / 3])
    assert found["rewards/margin/bn"].tolist() == [2 * (1 + 8)]  # the second group has none
    assert set(found) == {f"rewards/{key}/{s}" for key in ("margin", "top1", "kendall_tau") for s in ("an", "bn")}


def test_nca_with_three_candidates_by_hand():
    # h = [1, 0, -2]: -log sigmoid(1) = log(1 + e^-1) = 0.313262;
    # negatives: -log sigmoid(-0) = log 2 = 0.693147, -log sigmoid(2) = log(1 + e^-2) = 0.126928; their mean 0.410038.
    loss = nca_loss(torch.tensor([POLICY]), torch.tensor([REFERENCE]), beta=BETA)
    assert loss.item() == pytest.approx(0.313262 + 0.410038, abs=1e-6)


@pytest.mark.parametrize(("k", "times"), [(1, 1), (2, 2), (12, 2)])
def test_nca_starts_at_log_2_for_the_truth_and_for_its_negatives(k: int, times: int):
    policy, _ = random_logps(3, k)
    assert nca_loss(policy, policy, beta=5.0).item() == pytest.approx(times * math.log(2), abs=1e-12)


def test_nca_is_absolute_a_shift_of_all_candidates_changes_it():
    """A contrast by softmax does not see that all of a group have become less likely; here the truth's place counts."""
    policy, reference = random_logps(4, 3)
    lower = nca_loss(policy - 1, reference, beta=1.0) - nca_loss(policy, reference, beta=1.0)
    assert abs(lower.item()) > 0.01
    torch.testing.assert_close(cpo_loss(policy - 1, reference, beta=1.0), cpo_loss(policy, reference, beta=1.0))


def test_the_optimum_of_nca_is_the_log_ratio_of_truths_to_negatives():
    """Three outcomes, P and A known: the expected loss over all draws is least at h = log P/A, without a constant."""
    p, a = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    pairs = list(itertools.product(range(3), repeat=2))
    weights = torch.stack([p[i] * a[j] for i, j in pairs])
    h = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([h], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        each = [nca_loss(h[[i, j]][None], torch.zeros(1, 2, dtype=torch.float64), beta=1.0) for i, j in pairs]
        loss = (torch.stack(each) * weights).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(h.detach(), (p / a).log(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_a_policy_trained_by_nca_on_its_references_samples_ends_at_the_truth_where_beta_is_one(beta: float):
    """Three outcomes, reference A, truth P: what sums to one has h = log P/A at beta = 1 alone."""
    p, a = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    pairs = list(itertools.product(range(3), repeat=2))
    weights = torch.stack([p[i] * a[j] for i, j in pairs])
    logits = a.log().requires_grad_()
    optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        logps = logits.log_softmax(0)
        each = [nca_loss(logps[[i, j]][None], a.log()[[i, j]][None], beta=beta) for i, j in pairs]
        loss = (torch.stack(each) * weights).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    h = beta * (logits.detach().log_softmax(0) - a.log())
    off = (h - (p / a).log()).abs().max().item()
    assert off < 1e-5 if beta == 1 else off > 0.05


@EACH
def test_a_beta_for_each_candidate_is_a_sum_divided_by_its_own_tokens(loss: Loss):
    policy, reference = random_logps(3, 4)
    lengths = torch.tensor([[3, 1, 2, 5], [1, 1, 1, 1], [8, 2, 4, 2]], dtype=torch.float64)
    found = loss(policy, reference, beta=2.0 / lengths)
    torch.testing.assert_close(found, loss(policy / lengths, reference / lengths, beta=2.0), rtol=1e-12, atol=0)


def test_contrast_metrics_by_hand():
    nan = math.nan
    policy, reference = torch.tensor([POLICY, [5.0, 0.0, nan]]), torch.tensor([REFERENCE, [0.0, 0.0, nan]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = contrast_metrics(policy, reference, beta=BETA, mask=mask)
    # h = [1, 0, -2]: shares e^1, 1, e^-2 over 3.853617 = 0.705385, 0.259496, 0.035119.
    # Entropy: 0.246188 + 0.350064 + 0.117614 = 0.713866; exp: 2.041869. h = [10, 0]: shares 0.9999546, 0.0000454.
    small = math.exp(-10) / (1 + math.exp(-10))
    entropy = -small * math.log(small) - (1 - small) * math.log1p(-small)
    assert found["contrast/effective_candidates"].tolist() == pytest.approx([2.041869, math.exp(entropy)], abs=1e-5)
    # Mean -1/3, squares 16/9 + 1/9 + 25/9 = 42/9 over 3.
    assert found["contrast/spread"].tolist() == pytest.approx([math.sqrt(42 / 27), 5.0], abs=1e-6)
    assert found["contrast/decided"].tolist() == [0.0, 1.0]
    bound = kl_bound(policy, reference, beta=BETA, mask=mask)
    assert bound.tolist() == pytest.approx([math.log(3) - 0.349012, math.log(2) - math.log1p(math.exp(-10))], abs=1e-6)
    # |h| = 1, 0, 2 over 2, 4, 4 tokens: (1/2 + 0 + 1/2) / 3; the second group 10/5 and 0.
    tokens = torch.tensor([[2, 4, 4], [5, 5, 0]])
    per_token = h_per_token(policy, reference, tokens, beta=BETA, mask=mask)
    assert per_token.tolist() == pytest.approx([1 / 3, 1.0], abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 12])
def test_contrast_metrics_of_the_reference_itself(k: int):
    policy, _ = random_logps(2, k)
    found = contrast_metrics(policy, policy, beta=5.0)
    assert found["contrast/effective_candidates"].tolist() == pytest.approx([k, k])
    assert found["contrast/spread"].tolist() == [0.0, 0.0]
    assert found["contrast/decided"].tolist() == [float(k == 1)] * 2
    assert kl_bound(policy, policy, beta=5.0).tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


def test_strategy_metrics_take_a_beta_for_each_candidate():
    policy, reference = random_logps(3, 3)
    strategy, ranks = torch.tensor([[-1, 0, 1], [-1, 0, -1], [-1, 1, 1]]), torch.arange(3).expand(3, 3)
    mask = torch.tensor([[True] * 3, [True, True, False], [True] * 3])
    lengths = torch.tensor([[1.0, 2, 3], [4, 5, 1], [6, 7, 8]], dtype=torch.float64)
    found = strategy_metrics(policy, reference, ranks, strategy, ["an", "bn"], beta=2.0 / lengths, mask=mask)
    args = policy / lengths, reference / lengths, ranks, strategy, ["an", "bn"]
    expected = strategy_metrics(*args, beta=2.0, mask=mask)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values)
