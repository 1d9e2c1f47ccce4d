"""Estimates, resamples and bootstraps against formulas and against scipy's own."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from evaluation.metrics.statistics import Estimate, bootstrap, bootstrapped_mean, bootstrapped_share, resamples, share


def test_resamples_are_the_same_for_every_model_of_a_run() -> None:
    assert (resamples(50, 20) == resamples(50, 20)).all()
    assert (resamples(50, 20) != resamples(50, 20, seed=1)).any()


def test_resamples_draw_every_example_equally_often_and_with_replacement() -> None:
    drawn = resamples(100, 1000)
    assert drawn.shape == (1000, 100)
    assert (drawn.min(), drawn.max()) == (0, 99)
    # Of an example's 1,000 expected draws the standard deviation is 31.5: all 100 within 5 of them.
    assert np.abs(np.bincount(drawn.ravel()) - 1000).max() < 158
    # A resample holds a share of 1 - (1 - 1/n)^n of the examples, the rest being repetitions.
    share = np.mean([len(set(row)) / 100 for row in drawn.tolist()])
    assert share == pytest.approx(1 - 0.99**100, abs=0.005)


def test_bootstrap_of_a_mean_gives_its_standard_error_and_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=2000)
    error, (low, high) = bootstrap(2000, lambda indices: values[indices].mean(axis=1))
    expected = values.std() / math.sqrt(2000)
    assert error == pytest.approx(expected, rel=0.08)  # 1,000 resamples: a standard error of 2.2%
    assert low == pytest.approx(values.mean() - 1.96 * expected, abs=0.3 * expected)
    assert high == pytest.approx(values.mean() + 1.96 * expected, abs=0.3 * expected)


def test_bootstrap_agrees_with_scipys_on_skewed_values() -> None:
    values = np.random.default_rng(1).exponential(size=60)
    error, interval = bootstrap(60, lambda indices: np.median(values[indices], axis=1), replicates=20000)
    theirs = stats.bootstrap((values,), np.median, n_resamples=20000, method="percentile", rng=2)
    assert error == pytest.approx(theirs.standard_error, rel=0.04)
    assert interval == pytest.approx(tuple(theirs.confidence_interval), abs=0.1 * error)


def test_bootstrapped_mean_of_one_value_claims_no_certainty() -> None:
    found = bootstrapped_mean([0.5])
    assert (found.mean, found.n, found.interval) == (0.5, 1, None)
    assert math.isnan(found.standard_error)
    with pytest.raises(ValueError, match="at least one"):
        bootstrapped_mean([])


@pytest.mark.parametrize("mean", [Estimate.of, bootstrapped_mean])
def test_equal_values_claim_no_certainty(mean: Callable[[list[float]], Estimate]) -> None:
    found = mean([0.1] * 3)
    assert (found.mean, found.n, found.interval) == (pytest.approx(0.1), 3, None)
    assert math.isnan(found.standard_error)


def test_a_share_of_all_or_of_none_is_not_sure() -> None:
    assert bootstrapped_share([0.0, 1.0, 0.5]) == bootstrapped_mean([0.0, 1.0, 0.5])
    assert share([0.0, 1.0, 0.5]) == Estimate.of([0.0, 1.0, 0.5])
    for mean in (share, bootstrapped_share):
        for values in ([1.0] * 20, [0.0] * 20):
            found = mean(values)
            exact = stats.binomtest(int(sum(values)), 20).proportion_ci(method="exact")
            assert found.interval == pytest.approx((exact.low, exact.high))
            assert math.isnan(found.standard_error)
        assert mean([1.0]).interval is None


def test_only_ties_leave_as_much_unsure_as_only_wins() -> None:
    """Where 20 are alike, at most 16.8% are unlike: these may all be wins, or all losses."""
    found = bootstrapped_share([0.5] * 20)
    unlike = 1 - 0.025 ** (1 / 20)
    assert unlike == pytest.approx(0.168, abs=1e-3)
    assert (found.mean, found.interval) == (0.5, (pytest.approx(0.5 - unlike / 2), pytest.approx(0.5 + unlike / 2)))
    assert math.isnan(found.standard_error)
