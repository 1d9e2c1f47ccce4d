"""Agreement beyond chance, against scikit-learn's kappa and a published example of Fleiss'."""

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from evaluation.metrics.agreement import agreement, cohens_kappa, fleiss_kappa, mean_agreement


def test_cohens_kappa_is_scikit_learns_and_its_interval_holds_the_truth() -> None:
    draw = np.random.default_rng(0)
    first = draw.choice(["a", "b", "tie"], 400).tolist()
    second = [x if draw.random() < 0.6 else str(draw.choice(["a", "b", "tie"])) for x in first]
    found = cohens_kappa(first, second)
    assert found is not None
    assert found.mean == pytest.approx(cohen_kappa_score(first, second))
    assert found.interval is not None
    assert found.interval[0] < 0.6 < found.interval[1]  # what is copied, and else drawn by chance, is kappa
    # 400 things: the standard error of kappa is about sqrt(p (1 - p) / n) / (1 - 1/3)
    assert found.standard_error == pytest.approx(math.sqrt(0.733 * 0.267 / 400) / (2 / 3), rel=0.15)


def test_what_one_of_them_does_not_label_counts_for_nothing() -> None:
    found = agreement(["a", "b", None, "tie"], ["a", None, "b", "a"])
    assert found is not None
    assert (found.mean, found.n) == (0.5, 2)
    assert agreement(["a"], [None]) is None
    kappa = cohens_kappa(["a", "b", None, "b"], ["a", "b", "a", "b"])
    assert kappa is not None
    assert (kappa.mean, kappa.n) == (1.0, 3)


def test_where_chance_agrees_always_there_is_no_kappa() -> None:
    assert cohens_kappa(["a", "a"], ["a", "a"]) is None
    assert cohens_kappa([], []) is None
    assert fleiss_kappa([["a", "a", "a"]] * 3) is None


def test_a_labeller_of_one_label_alone_agrees_as_by_chance() -> None:
    found = cohens_kappa(["a", "b", "a", "b"], ["a"] * 4)
    assert found is not None
    assert found.mean == 0.0
    assert math.isnan(found.standard_error)
    assert found.interval is None


def test_fleiss_kappa_of_the_published_example() -> None:
    """Ten things, fourteen labellers, five labels: Fleiss (1971) as Wikipedia works it out, 0.210."""
    counts = [
        *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
        *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
    ]
    things = [[label for label, count in enumerate(row) for _ in range(count)] for row in counts]
    found = fleiss_kappa(things)
    assert found is not None
    assert found.mean == pytest.approx(0.210, abs=5e-4)
    assert found.interval is not None
    shared = mean_agreement(things)
    assert shared is not None
    assert shared.mean == pytest.approx(0.378, abs=5e-4)
