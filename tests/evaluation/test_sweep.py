"""`--sweep`: halves of the prompts that never meet, and the alpha that the validation half proposes."""

import pytest

from evaluation.metrics import METRICS, in_order
from evaluation.metrics.statistics import Estimate, Measurement
from evaluation.prepared import halves
from evaluation.sweep import describe_sweep, propose

NAMES = ["alpha-0", "alpha-0.5", "alpha-0.9"]
ALPHAS = dict(zip(NAMES, (0.0, 0.5, 0.9), strict=True))
ALL = in_order(METRICS.names())


def measured(metric: str, values: list[float], decoding: str = "greedy", against: str = "") -> list[Measurement]:
    return [
        Measurement(name, decoding, metric, Estimate(value, 0.1, 50), against)
        for name, value in zip(["mle", *NAMES], values, strict=True)
    ]


def test_the_halves_are_disjoint_cover_everything_and_depend_on_the_ids_alone() -> None:
    ids = [f"prompt-{i}" for i in range(1000)]
    test, validation = halves(ids)
    assert sorted([*test, *validation]) == list(range(1000))
    assert 430 < len(validation) < 570
    turned_test, _ = halves(ids[::-1])
    assert {ids[i] for i in test} == {ids[::-1][i] for i in turned_test}


@pytest.mark.parametrize(
    ("measurements", "expected"),
    [
        # The MLE model is better still, but no ensemble.
        (measured("win_rate", [0.9, 0.4, 0.6, 0.5], against="truth"), ("win_rate", "alpha-0.5")),
        (measured("reverse_kl", [0.1, 3.0, 2.0, 1.0], "sample"), ("reverse_kl", "alpha-0.9")),
        # Of equally good ones the first.
        (measured("correct", [0.0, 0.5, 0.5, 0.2]), ("correct", "alpha-0")),
        # A win rate counts before anything else, and only against the truth.
        (
            measured("nll", [1.0, 1.0, 2.0, 3.0]) + measured("win_rate", [0.5, 0.1, 0.2, 0.3], against="truth"),
            ("win_rate", "alpha-0.9"),
        ),
        (
            measured("nll", [1.0, 1.0, 2.0, 3.0]) + measured("win_rate", [0.5, 0.1, 0.2, 0.3], against="mle"),
            ("nll", "alpha-0"),
        ),
        # Of another decoding than the first.
        (measured("nll", [1.0, 1.0, 2.0, 3.0], "beam2"), None),
        ([], None),
    ],
)
def test_the_best_ensemble_by_the_first_criterion_is_proposed(
    measurements: list[Measurement], expected: tuple[str, str] | None
) -> None:
    assert propose(measurements, NAMES, "greedy", ALL) == expected


def test_the_description_of_a_sweep_names_the_proposed_alpha() -> None:
    found = describe_sweep(ALPHAS, measured("correct", [0.0, 0.1, 0.5, 0.2]), "greedy", ALL)
    assert (found["metric"], found["proposed"]) == ("correct", 0.5)
    assert found["models"] == {"alpha-0": 0.0, "alpha-0.5": 0.5, "alpha-0.9": 0.9}
    assert found["validation"][1].estimate.mean == 0.1
    assert describe_sweep({"alpha-0": 0.0}, [], "greedy", ALL)["proposed"] is None
