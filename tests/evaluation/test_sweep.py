"""`--sweep`: halves of the prompts that never meet, and the alpha that the validation half proposes."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from evaluation.metrics import METRICS, in_order
from evaluation.metrics.statistics import Difference, Estimate, Measurement, all_differences
from evaluation.prepared import halves
from evaluation.report.proposal import proposal
from evaluation.sweep import Proposal, describe_sweep, propose

NAMES = ["alpha-0", "alpha-0.5", "alpha-0.9"]
ALPHAS = dict(zip(NAMES, (0.0, 0.5, 0.9), strict=True))
ALL = in_order(METRICS.names())


def measured(metric: str, values: list[float], decoding: str = "greedy", against: str = "") -> list[Measurement]:
    return [
        Measurement(name, decoding, metric, Estimate(value, 0.1, 50), against)
        for name, value in zip(["mle", *NAMES], values, strict=False)
    ]


def test_the_halves_are_disjoint_cover_everything_and_depend_on_the_ids_alone() -> None:
    ids = [f"prompt-{i}" for i in range(1000)]
    test, validation = halves(ids)
    assert sorted([*test, *validation]) == list(range(1000))
    assert 430 < len(validation) < 570
    turned_test, _ = halves(ids[::-1])
    assert {ids[i] for i in test} == {ids[::-1][i] for i in turned_test}


def chosen(measurements: list[Measurement], differences: Sequence[Difference] = ()) -> Proposal | None:
    return propose(measurements, differences, NAMES, "greedy", ALL)


@pytest.mark.parametrize(
    ("measurements", "expected"),
    [
        # The MLE model is better still, but no ensemble. Each is ± 0.1, so that 0.28 are told apart.
        (measured("win_rate", [0.9, 0.2, 0.6, 0.5], against="truth"), ("win_rate", "alpha-0.5", ("alpha-0.9",))),
        (measured("reverse_kl", [0.1, 3.0, 2.0, 1.0], "sample"), ("reverse_kl", "alpha-0.9", ())),
        # Two that are equally good, and none that is told apart from the best.
        (measured("correct", [0.0, 0.5, 0.5, 0.1]), ("correct", None, ("alpha-0", "alpha-0.5"))),
        (measured("correct", [0.9, 0.5, 0.4, 0.3]), ("correct", None, ("alpha-0", "alpha-0.5", "alpha-0.9"))),
        # A win rate counts before anything else, and only against the truth.
        (
            measured("nll", [1.0, 1.0, 2.0, 3.0]) + measured("win_rate", [0.5, 0.1, 0.2, 0.9], against="truth"),
            ("win_rate", "alpha-0.9", ()),
        ),
        (
            measured("nll", [1.0, 1.0, 2.0, 3.0]) + measured("win_rate", [0.5, 0.1, 0.2, 0.3], against="mle"),
            ("nll", "alpha-0", ()),
        ),
        # Of another decoding than the first.
        (measured("nll", [1.0, 1.0, 2.0, 3.0], "beam2"), None),
        ([], None),
    ],
)
def test_the_best_ensemble_by_the_first_criterion_is_proposed(
    measurements: list[Measurement], expected: tuple[str, str | None, tuple[str, ...]] | None
) -> None:
    assert chosen(measurements) == (expected and Proposal(*expected))


def test_what_is_paired_by_prompt_tells_ensembles_apart() -> None:
    found = measured("correct", [0.0, 0.5, 0.6, 0.4])
    paired = all_differences(
        "correct", "greedy", {"alpha-0": [0.0] * 50, "alpha-0.5": [0.0, 1.0] * 25, "alpha-0.9": [0.0] * 50}
    )
    assert chosen(found) == Proposal("correct", None, ("alpha-0", "alpha-0.5", "alpha-0.9"))
    assert chosen(found, paired) == Proposal("correct", "alpha-0.5")


def test_nothing_is_proposed_on_three_prompts() -> None:
    found = [replace(m, estimate=replace(m.estimate, n=3)) for m in measured("correct", [0.0, 0.0, 0.1, 1.0])]
    sweep = describe_sweep(ALPHAS, found, (), "greedy", ALL)
    assert (sweep["proposed"], sweep["alike"]) == (None, [0.0, 0.5, 0.9])
    assert proposal({"sweep": {**sweep, "validation_prompts": 3}}) == (
        "No alpha is proposed: not distinguishable by correct on the 3 validation prompts are alpha = 0, 0.5, 0.9."
    )


def test_a_single_ensemble_is_proposed() -> None:
    assert propose(measured("nll", [1.0, 2.0]), (), NAMES[:1], "greedy", ALL) == Proposal("nll", "alpha-0")


def test_the_description_of_a_sweep_names_the_proposed_alpha() -> None:
    found = describe_sweep(ALPHAS, measured("correct", [0.0, 0.1, 0.5, 0.4]), (), "greedy", ALL)
    assert (found["metric"], found["proposed"], found["alike"]) == ("correct", 0.5, [0.9])
    assert found["models"] == {"alpha-0": 0.0, "alpha-0.5": 0.5, "alpha-0.9": 0.9}
    assert found["validation"][1].estimate.mean == 0.1
    assert proposal({"sweep": found}) == (
        "Proposed: alpha = 0.5, by correct on the validation prompts, which are in no other table. "
        "Not distinguishable from it: alpha = 0.9."
    )
    assert describe_sweep({"alpha-0": 0.0}, [], (), "greedy", ALL)["proposed"] is None
