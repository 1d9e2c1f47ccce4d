"""What the objectives converge to, against closed forms, in a world small enough to enumerate.

Two kinds of test. Exact ones minimise the expected loss over all groups, weighted as they come; they hold to EXACT
nats. Sampled ones run the trainer for an epoch over groups that were drawn and are seen once, on a negative set by the
set's own writer and BN by its own strategy (K, rounds and top-k: groups in memory). Their tolerance is in total
variation: what the Fisher information of the groups drawn says the exact minimiser of their loss is off by, expected,
times SLACK, as a single pass of stochastic gradients is no exact minimiser. Where the optimum lies on the way from the
reference to the truth, its exponent must be met too, within SIGMAS standard errors by the same information.

docs/what-it-learns.md says what it means; `python -m tests.support.what_it_learns` draws its figure.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.shards import NegativeSet
from tests.support.enumerable import (
    TabularLM,
    covariances,
    covariances_of_mle,
    distribution_by,
    expected_distance,
    exponent_error,
    exponent_of,
    marginal,
    mass,
    optimum,
    optimum_of_other_texts,
    scored,
    standard_errors,
    tilted,
    top_k_of,
    total_variation,
)
from tests.support.enumerable_runs import (
    REFERENCE,
    TRUTH,
    Drawn,
    DrawnGroups,
    all_groups,
    borrowed,
    contrastive,
    draw,
    independent,
    learned,
    minimised,
    minimised_by_responses,
    of_other_texts,
    spread,
    trained,
    write_set,
)
from trainer.ensemble.interpolate import interpolate
from trainer.scoring.prepared_model import prepare_model

pytestmark = pytest.mark.seconds

BETAS = (0.5, 1.0, 2.0, 5.0)
EXACT = 1e-5  # nats
SLACK = 2.0
SIGMAS = 3.0
GROUPS = 12_288  # of the set: 96 steps
TOP_K = 3  # of four tokens
RATIO_ERROR = 0.083  # of the logarithm of a ratio of two variances: sqrt(2 x 2 / ((PARTS - 1) x 117))


# --- exactly ---


def test_the_policy_is_scored_alike_in_both_layouts() -> None:
    model = TabularLM.of(REFERENCE, torch.float64)
    prepared = prepare_model(model)
    assert prepared.layout == "packed"
    packed, padded = (scored(replace(prepared, layout=layout)).detach().numpy() for layout in ("packed", "padded"))
    assert np.abs(packed - padded).max() < 1e-12
    assert np.abs(packed - REFERENCE).max() < 1e-12
    assert np.abs(np.exp(REFERENCE).sum(axis=1) - 1).max() < 1e-12


@pytest.mark.parametrize(
    ("beta", "number", "layout"), [*((beta, 2, "packed") for beta in BETAS), (1.0, 2, "padded"), (2.0, 3, "packed")]
)
def test_cpos_minimiser_is_the_closed_form_whatever_k(beta: float, number: int, layout: str) -> None:
    groups = all_groups(number)
    policy = minimised(REFERENCE, groups, independent(groups, TRUTH, REFERENCE), beta, layout=layout)
    assert np.abs(policy - tilted(REFERENCE, TRUTH, 1 / beta)).max() < EXACT


@pytest.mark.parametrize("beta", [0.5, 5.0])
def test_bns_minimiser_is_the_reference_times_pmi(beta: float) -> None:
    groups = all_groups(2)
    policy = minimised(REFERENCE, groups, independent(groups, TRUTH, marginal(TRUTH)), beta)
    pmi = TRUTH - marginal(TRUTH)
    expected = REFERENCE + pmi / beta
    assert np.abs(policy - (expected - np.logaddexp.reduce(expected, axis=1, keepdims=True))).max() < EXACT


def test_negatives_that_are_never_the_ground_truth_move_the_minimiser_as_the_closed_form_says() -> None:
    groups = all_groups(2)
    policy = minimised(REFERENCE, groups, of_other_texts(groups, TRUTH, REFERENCE), 1.0)
    assert np.abs(policy - optimum_of_other_texts(REFERENCE, TRUTH, REFERENCE, 1.0)).max() < EXACT
    assert np.abs(policy - TRUTH).max() > 100 * EXACT


@pytest.mark.parametrize(
    ("beta", "shares"), [(1.0, (0.6364, 0.7000, 0.7554, 0.8000)), (5.0, (0.5280, 0.5423, 0.5561, 0.5689))]
)
def test_negatives_that_differ_from_all_of_their_group_move_the_minimiser_further_with_k(
    beta: float, shares: tuple[float, ...]
) -> None:
    """Truth and sampler are the reference already, one response half of it; K is 2 to 5.

    With K = 2 there is the closed form. With K = 5 each group is all five responses: what was drawn says nothing, and
    the ratio is that of the truth to a uniform sampler, so that the policy is reference x truth^(1/beta).
    """
    reference = np.log([[0.5, 0.125, 0.125, 0.125, 0.125]])
    found = {}
    for number in (2, 3, 4, 5):
        groups = all_groups(number, responses=5)
        weights = of_other_texts(groups, reference, reference)
        assert weights.sum() == pytest.approx(1)
        found[number] = minimised_by_responses(reference, groups, weights, beta)
        fresh = minimised_by_responses(reference, groups, independent(groups, reference, reference), beta)
        assert np.abs(fresh - reference).max() < EXACT
    assert [float(np.exp(policy[0, 0])) for policy in found.values()] == pytest.approx(shares, abs=1e-4)
    assert np.abs(found[2] - optimum_of_other_texts(reference, reference, reference, beta)).max() < EXACT
    assert np.abs(found[5] - tilted(np.zeros((1, 5)), reference, 1 + 1 / beta)).max() < EXACT


def test_exact_rounds_go_the_rest_of_the_way_by_the_same_share_each() -> None:
    groups, beta, policy = all_groups(2), 5.0, REFERENCE
    for t in (1, 2, 3):
        policy = minimised(policy, groups, independent(groups, TRUTH, policy), beta)
        assert np.abs(policy - tilted(REFERENCE, TRUTH, 1 - (1 - 1 / beta) ** t)).max() < EXACT


def test_below_top_k_there_is_no_minimiser_all_mass_leaves_for_what_is_out_of_reach() -> None:
    groups, reach = all_groups(2), top_k_of(REFERENCE, TOP_K)
    outside = np.isneginf(reach)
    seen: list[float] = [mass(REFERENCE, outside)]
    weights = independent(groups, TRUTH, reach)
    minimised(REFERENCE, groups, weights, 1.0, most=30, watch=lambda now: seen.append(mass(now, outside)))
    assert seen == sorted(seen)
    assert mass(TRUTH, outside) < 0.2
    assert seen[-1] > 0.99


# --- by the trainer ---


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw(0, GROUPS, TRUTH, REFERENCE, 4)


@pytest.fixture(scope="module")
def stored(drawn: Drawn, tmp_path_factory: pytest.TempPathFactory) -> NegativeSet:
    """A real negative set of fresh AN, and BN by its strategy."""
    return write_set(tmp_path_factory.mktemp("enumerable") / "set", drawn, REFERENCE)


def check(policy: np.ndarray, expected: np.ndarray, allowed: float, *wrong: np.ndarray) -> None:
    """A policy is what is expected within the tolerance, and by the same tolerance none of what would be wrong."""
    found = total_variation(policy, expected)
    nearest = min((total_variation(expected, other) for other in wrong), default=np.inf)
    print(f"total variation {found:.3f}, allowed {allowed:.3f}, nearest wrong {nearest:.3f}")  # docs/what-it-learns.md
    assert found < allowed
    for other in wrong:
        assert total_variation(policy, other) > allowed
        assert total_variation(expected, other) > 1.5 * allowed


def check_exponent(
    policy: np.ndarray,
    expected: float,
    error: float,
    wrong: Sequence[float],
    ends: tuple[np.ndarray, np.ndarray] = (REFERENCE, TRUTH),
) -> None:
    """A policy is so far of the way between two ends within SIGMAS standard errors, which what is wrong is not."""
    assert abs(exponent_of(policy, *ends) - expected) < SIGMAS * error
    for other in wrong:
        assert abs(other - expected) > 2 * SIGMAS * error


def covariance(drawn: Drawn, odds: np.ndarray, policy: np.ndarray, beta: float) -> np.ndarray:
    """Covariance of the log-probabilities of the exact minimiser of the groups drawn."""
    return covariances(drawn.prefixes, drawn.candidates, odds, policy, beta)


def tolerance(covariance: np.ndarray, policy: np.ndarray) -> float:
    """Total variation that is allowed, see above."""
    return SLACK * expected_distance(policy, standard_errors(covariance))


def check_tilted(policy: np.ndarray, beta: float, drawn: Drawn) -> float:
    """A policy is the closed form of fresh AN within both tolerances, and that of no half or double beta.

    Returns:
        The total variation that is allowed.
    """
    expected, wrong = tilted(REFERENCE, TRUTH, 1 / beta), (2 / beta, 1 / (2 * beta))
    found = covariance(drawn, TRUTH - REFERENCE, expected, beta)
    allowed = tolerance(found, expected)
    check(policy, expected, allowed, *(tilted(REFERENCE, TRUTH, exponent) for exponent in wrong))
    check_exponent(policy, 1 / beta, exponent_error(found, REFERENCE, TRUTH), wrong)
    return allowed


@pytest.mark.parametrize("beta", BETAS)
def test_cpo_on_fresh_an_converges_to_the_closed_form(beta: float, drawn: Drawn, stored: NegativeSet) -> None:
    check_tilted(learned(trained(REFERENCE, contrastive(stored, "an=3"), beta)), beta, drawn)


def test_fewer_negatives_raise_the_variance_and_leave_the_optimum() -> None:
    """By how much is in the groups' Fisher information, within the error of a ratio of two variances of PARTS runs.

    Each has (PARTS - 1) x 117 degrees of freedom. No exponent is asked of the mixture of the runs: the logarithm of a
    mean is above the mean of logarithms, most so for rare responses.
    """
    measured, expected = {}, {}
    for number in (2, 8):
        measured[number], expected[number], mean, whole = spread(number)
        wrong = (tilted(REFERENCE, TRUTH, e) for e in (0.5, 2.0))
        check(mean, TRUTH, tolerance(covariance(whole, TRUTH - REFERENCE, TRUTH, 1.0), TRUTH), *wrong)
    surer, by_fisher = measured[2] / measured[8], expected[2] / expected[8]
    assert abs(np.log(surer / by_fisher)) < SIGMAS * RATIO_ERROR
    assert np.log(surer) > SIGMAS * RATIO_ERROR  # so that no ratio at all is excluded


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_cpo_on_bn_converges_to_the_reference_times_pmi(beta: float, drawn: Drawn, stored: NegativeSet) -> None:
    """BN borrows what is no text of the group yet, so that its negatives are never the ground truth."""
    plain = optimum(REFERENCE, TRUTH, marginal(TRUTH), beta)
    expected = optimum_of_other_texts(REFERENCE, TRUTH, marginal(TRUTH), beta)
    pairs = Drawn(drawn.prefixes, np.stack([drawn.candidates[:, 0], borrowed(stored)], axis=1))
    found = covariance(pairs, beta * (expected - REFERENCE), expected, beta)
    policy = learned(trained(REFERENCE, contrastive(stored, "bn=1"), beta))
    wrong = tilted(REFERENCE, TRUTH, 1 / beta), optimum(REFERENCE, TRUTH, marginal(TRUTH), 2 * beta)
    check(policy, expected, tolerance(found, expected), *wrong)
    check_exponent(policy, 1.0, exponent_error(found, plain, expected), [0.0], (plain, expected))


def test_cpo_on_independent_draws_of_ground_truths_converges_to_the_reference_times_pmi_alone() -> None:
    """Told apart from what BN's draws of other texts lead to by how far it is of the way there: not at all."""
    beta, borrowed_from = 2.0, marginal(TRUTH)
    drawn = draw(30, GROUPS, TRUTH, borrowed_from, 4)
    expected = optimum(REFERENCE, TRUTH, borrowed_from, beta)
    of_others = optimum_of_other_texts(REFERENCE, TRUTH, borrowed_from, beta)
    found = covariance(drawn, TRUTH - borrowed_from, expected, beta)
    policy = learned(trained(REFERENCE, DrawnGroups(drawn, REFERENCE), beta))
    wrong = tilted(REFERENCE, TRUTH, 1 / beta), optimum(REFERENCE, TRUTH, borrowed_from, 2 * beta)
    check(policy, expected, tolerance(found, expected), *wrong)
    check_exponent(policy, 0.0, exponent_error(found, expected, of_others), [1.0], (expected, of_others))


def test_dpo_by_trls_trainer_has_spins_fixed_point(drawn: Drawn, stored: NegativeSet) -> None:
    """SPIN's Theorem 5.4 (arXiv 2401.01335): reference (truth / reference)^(1/beta), that of CPO with K = 2."""
    beta = 2.0
    pairs = Drawn(drawn.prefixes, drawn.candidates[:, :2])
    dpo, cpo = (learned(trained(REFERENCE, contrastive(stored, "an=1"), beta, name)) for name in ("dpo", "cpo"))
    allowed = [check_tilted(policy, beta, pairs) for policy in (dpo, cpo)]
    assert total_variation(dpo, cpo) < allowed[0]


def test_rounds_from_the_last_policy_with_fresh_negatives_go_on() -> None:
    """A round carries on 1 - 1/beta of the error before it, and adds one of its own."""
    beta, policy, errors, exponent_off, before = 5.0, REFERENCE, np.zeros_like(REFERENCE), 0.0, 0.0
    for t in (1, 2, 3):
        drawn = draw(10 + t, GROUPS, TRUTH, policy, 4)
        exponent = 1 - (1 - 1 / beta) ** t
        expected = tilted(REFERENCE, TRUTH, exponent)
        own = covariance(drawn, TRUTH - policy, expected, beta)
        errors = np.hypot((1 - 1 / beta) * errors, standard_errors(own))
        exponent_off = np.hypot((1 - 1 / beta) * exponent_off, exponent_error(own, REFERENCE, TRUTH))
        policy = learned(trained(policy, DrawnGroups(drawn, policy), beta))
        check(policy, expected, SLACK * expected_distance(expected, errors), tilted(REFERENCE, TRUTH, before))
        check_exponent(policy, exponent, exponent_off, [before])
        before = exponent


def test_mass_leaves_below_top_k_only() -> None:
    reach = top_k_of(REFERENCE, TOP_K)
    outside = np.isneginf(reach)
    found = {}
    for k, negatives in ((0, REFERENCE), (TOP_K, reach)):
        groups = draw(20, GROUPS // 2, TRUTH, negatives, 4)
        found[k] = mass(learned(trained(REFERENCE, DrawnGroups(groups, REFERENCE), 1.0)), outside)
    share = mass(TRUTH, outside)
    binomial = np.sqrt(share * (1 - share) / (GROUPS // 2))  # standard error of the share of truths
    assert abs(found[0] - share) < 3 * SLACK * binomial
    assert found[TOP_K] > 2 * share > share + 12 * SLACK * binomial


def test_an_ensembles_alpha_is_an_exponent_to_first_order() -> None:
    """Half the difference of truth and reference leaves a quarter of what the exponent does not explain.

    So what is left is of second order; at alpha 0 and 1, and between models of one exponent, nothing is.
    """
    alpha, beta, left = 0.3, 5.0, []
    for scale in (0.2, 0.1):
        truth = tilted(REFERENCE, TRUTH, scale)
        mle, cpo = (TabularLM.of(tilted(REFERENCE, truth, e), torch.float64) for e in (1.0, 1 / beta))
        mixed = TabularLM.of(REFERENCE, torch.float64)
        mixed.table.data = interpolate(mle.table.data, cpo.table.data, alpha)
        expected = tilted(REFERENCE, truth, alpha + (1 - alpha) / beta)
        left.append(np.abs(distribution_by(mixed) - expected).max())
    assert 3.5 < left[0] / left[1] < 4.5


def test_an_ensemble_of_trained_models_has_the_exponent_of_theory(drawn: Drawn, stored: NegativeSet) -> None:
    """Two standard errors, times SLACK, beside what is of higher order, which the closed forms' ensemble has too."""
    beta = 5.0
    mle = trained(REFERENCE, contrastive(stored, None), 1.0, "mle")
    cpo = trained(REFERENCE, contrastive(stored, "an=3"), beta)
    ends = [tilted(REFERENCE, TRUTH, e) for e in (1.0, 1 / beta)]
    tables = [TabularLM.of(end).table.data for end in ends]
    of_cpo = covariances(drawn.prefixes, drawn.candidates, TRUTH - REFERENCE, ends[1], beta)
    errors = [exponent_error(c, REFERENCE, TRUTH) for c in (covariances_of_mle(GROUPS, TRUTH), of_cpo)]
    mixed = TabularLM.of(REFERENCE)
    for alpha in (0.0, 0.1, 0.3, 0.6, 1.0):
        theory = alpha + (1 - alpha) / beta
        mixed.table.data = interpolate(tables[0], tables[1], alpha)
        higher = abs(exponent_of(distribution_by(mixed), REFERENCE, TRUTH) - theory)
        mixed.table.data = interpolate(mle.table.data, cpo.table.data, alpha)
        allowed = higher + 2 * SLACK * (alpha * errors[0] + (1 - alpha) * errors[1])
        if alpha < 0.5:  # then it is not alpha alone
            assert theory - alpha > 1.5 * allowed
        assert exponent_of(distribution_by(mixed), REFERENCE, TRUTH) == pytest.approx(theory, abs=allowed)
