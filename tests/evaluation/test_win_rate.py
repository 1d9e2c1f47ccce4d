"""Win rates against judges whose preferences are known."""

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from evaluation.judging.base import Outcome
from evaluation.metrics.rates import RIDGE, counts, fit, length_controlled, length_differences, win_rate
from evaluation.metrics.statistics import paired_difference, resamples

EXPERIMENTS = 400
PROMPTS = 200
# Of 400 intervals at 95% the covering share has a standard error of 1.1%.
COVERAGE = (0.92, 0.98)


def ask(judge: Callable[[str, str], str], answer: str, other: str) -> Outcome:
    """Both orders, as the evaluation asks: a verdict that changes with the order is a tie and a flip."""
    verdicts = judge(answer, other), judge(other, answer)
    first, second = verdicts[0] == "A", verdicts[1] == "B"
    return Outcome(float(first) if first == second else 0.5, first != second, verdicts)


def scores_of(outcomes: Sequence[Outcome]) -> list[float | None]:
    return [outcome.score for outcome in outcomes]


def texts(lengths: np.ndarray) -> list[str]:
    return ["x" * int(n) for n in lengths]


# ---- judges whose preferences are known ----


def test_a_judge_that_always_names_the_first_gives_one_half_and_flips_every_time() -> None:
    outcomes = [ask(lambda first, second: "A", "mine", "theirs") for _ in range(100)]
    found = counts(outcomes)
    assert (found.wins, found.ties, found.losses, found.flips) == (0, 100, 0, 100)
    assert found.flip_rate is not None
    assert found.flip_rate.mean == 1.0
    rate = win_rate(scores_of(outcomes))
    assert rate is not None
    assert rate.mean == 0.5
    assert rate.interval == (pytest.approx(0.482, abs=1e-3), pytest.approx(0.518, abs=1e-3))
    assert math.isnan(rate.standard_error)
    assert length_controlled(scores_of(outcomes), range(-50, 50)) == rate


def test_a_judge_that_prefers_the_longer_text_is_found_out() -> None:
    draw = np.random.default_rng(0)
    answers = texts(draw.integers(100, 400, 1000))
    others = texts(draw.integers(50, 300, 1000))

    def judge(first: str, second: str) -> str:
        return "A" if (len(first) > len(second)) != (draw.random() < 0.05) else "B"

    outcomes = [ask(judge, answer, other) for answer, other in zip(answers, others, strict=True)]
    raw = win_rate(scores_of(outcomes))
    controlled = length_controlled(scores_of(outcomes), length_differences(answers, others))
    assert raw is not None
    assert controlled is not None
    assert raw.mean > 0.7
    assert raw.interval is not None
    assert raw.interval[0] > 0.68
    assert controlled.mean == pytest.approx(0.5, abs=0.06)
    assert controlled.interval is not None
    assert controlled.interval[0] < 0.5 < controlled.interval[1]


def test_a_judge_that_always_names_the_longer_text_is_at_one_half_within_the_interval() -> None:
    draw = np.random.default_rng(1)
    longer_by = draw.normal(60, 100, 1000)
    found = length_controlled((longer_by > 0).astype(float).tolist(), longer_by.tolist())
    assert found is not None
    assert found.interval is not None
    assert found.interval[0] < 0.5 < found.interval[1]
    assert found.mean == pytest.approx(0.5, abs=0.25)


def test_a_judge_that_does_not_look_at_length_keeps_its_win_rate() -> None:
    draw = np.random.default_rng(2)
    scores = (draw.random(1000) < 0.6).astype(float).tolist()
    longer_by = draw.normal(80, 120, 1000).tolist()
    raw, controlled = win_rate(scores), length_controlled(scores, longer_by)
    assert raw is not None
    assert controlled is not None
    assert raw.mean == pytest.approx(0.6, abs=0.04)
    assert controlled.mean == pytest.approx(0.6, abs=0.05)
    assert raw.standard_error == pytest.approx(math.sqrt(0.24 / 1000), rel=0.1)


# ---- counting ----


def test_outcomes_are_counted_by_kind_and_unjudged_ones_by_reason() -> None:
    outcomes = [
        *(Outcome(1.0, verdicts=("A", "B")), Outcome(1.0, verdicts=("A", "B")), Outcome(0.0, verdicts=("B", "A"))),
        *(Outcome(0.5, reason="the same"), Outcome(0.5, flipped=True, verdicts=("B", "B"))),
        *(Outcome(None, reason="unread: Hm"), Outcome(None, reason="refused"), Outcome(None, reason="unread: Both")),
    ]
    found = counts(outcomes)
    assert (found.wins, found.ties, found.losses, found.flips) == (2, 2, 1, 1)
    assert found.flip_rate is not None
    assert (found.flip_rate.mean, found.flip_rate.n) == (0.25, 4)  # nobody asked about the texts that are the same
    assert found.not_judged == {"unread": 2, "refused": 1}
    rate = win_rate(scores_of(outcomes))
    assert rate is not None
    assert (rate.mean, rate.n) == (0.6, 5)  # not 3 / 8: what was not judged is no loss


@pytest.mark.parametrize("verdicts", [("A",), ()], ids=["a single order", "a reward model"])
def test_where_no_pair_has_verdicts_in_both_orders_there_is_no_flip_rate(verdicts: tuple[str, ...]) -> None:
    assert counts([Outcome(1.0, verdicts=verdicts)] * 5).flip_rate is None


def test_where_nothing_was_judged_there_is_no_rate() -> None:
    assert win_rate([None, None]) is None
    assert paired_difference([None, 1.0], [1.0, None]) is None
    assert length_controlled([None], [3]) is None
    assert counts([Outcome(None, reason="refused")]).flip_rate is None


def test_a_single_prompt_has_a_rate_but_no_interval() -> None:
    rate = win_rate([1.0, None])
    assert rate is not None
    assert (rate.mean, rate.n, rate.interval) == (1.0, 1, None)
    assert math.isnan(rate.standard_error)


# ---- paired differences ----


def test_difference_is_over_the_prompts_that_both_were_judged_on() -> None:
    found = paired_difference([1.0, 1.0, 0.5, None, 0.0], [0.0, 1.0, None, 1.0, 0.5])
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx((1 + 0 - 0.5) / 3), 3)
    with pytest.raises(ValueError, match="argument"):
        paired_difference([1.0], [1.0, 0.0])


def test_pairing_makes_the_difference_sharper_than_two_rates_apart() -> None:
    draw = np.random.default_rng(3)
    ease = draw.random(500)
    shared = draw.random(500)
    a = (shared < 0.8 * ease + 0.15).astype(float).tolist()
    b = (shared < 0.8 * ease + 0.05).astype(float).tolist()
    paired, rate_a, rate_b = paired_difference(a, b), win_rate(a), win_rate(b)
    assert paired is not None
    assert rate_a is not None
    assert rate_b is not None
    assert paired.mean == pytest.approx(rate_a.mean - rate_b.mean)
    apart = math.hypot(rate_a.standard_error, rate_b.standard_error)
    assert paired.standard_error < 0.5 * apart
    assert paired.standard_error == pytest.approx(np.std(np.subtract(a, b)) / math.sqrt(500), rel=0.1)


def test_difference_of_a_model_with_itself_is_zero() -> None:
    found = paired_difference([1.0, 0.0, 0.5], [1.0, 0.0, 0.5])
    assert found is not None
    assert (found.mean, found.n, found.interval) == (0.0, 3, None)
    assert math.isnan(found.standard_error)


# ---- the regression ----


def reference_fit(feature: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """scikit-learn's: a score between 0 and 1 as a weighted win and a weighted loss."""
    design = np.stack([np.ones_like(feature), feature], axis=1)
    model = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-10, max_iter=10000, solver="newton-cholesky")
    model.fit(
        np.concatenate([design, design]),
        np.repeat([1, 0], len(score)),
        sample_weight=np.concatenate([weights * score, weights * (1 - score)]),
    )
    return model.coef_[0]


@pytest.mark.parametrize(
    "case", ["plain", "ties", "rare", "separated", "all won", "all won but one", "one sided", "few", "long tail"]
)
def test_the_logistic_regression_agrees_with_scikit_learn(case: str) -> None:
    draw = np.random.default_rng(4)
    n = 12 if case == "few" else 300
    feature = np.tanh(draw.normal(0.5, 1, n))
    score = (draw.random(n) < 1 / (1 + np.exp(-0.4 - 1.5 * feature))).astype(float)
    if case == "ties":
        score[draw.random(n) < 0.3] = 0.5
    if case == "rare":
        score = (draw.random(n) < 0.01).astype(float)
        score[0] = 1
    if case == "separated":
        score = (feature > 0.2).astype(float)
    if case.startswith("all won"):
        score[:] = 1
    if case == "all won but one":
        score[7] = 0
    if case == "one sided":
        feature = np.abs(feature)
    if case == "long tail":
        feature = np.where(draw.random(n) < 0.02, 0.99, 0.001 * feature)
    weights = draw.integers(1, 4, (3, n)).astype(float)
    found = fit(feature, score, weights, start=np.array([2.0, -3.0]))
    for row, weight in zip(found, weights, strict=True):
        assert row == pytest.approx(reference_fit(feature, score, weight), abs=1e-4)


def test_length_controlled_reads_the_regression_off_at_no_difference() -> None:
    draw = np.random.default_rng(5)
    longer_by = draw.normal(30, 90, 400)
    scores = (draw.random(400) < 1 / (1 + np.exp(0.3 - 2 * np.tanh(longer_by / 90)))).astype(float)
    feature = np.tanh(longer_by / longer_by.std(ddof=1))
    found = length_controlled(scores.tolist(), longer_by.tolist())
    assert found is not None
    assert found.n == 400
    assert found.mean == pytest.approx(1 / (1 + math.exp(-reference_fit(feature, scores, np.ones(400))[0])), abs=1e-5)
    # Resamples refitted one by one, on the examples that they drew.
    indices = resamples(400, 3)
    drawn = np.stack([np.bincount(row, minlength=400) for row in indices]).astype(float)
    for row, refitted in zip(indices, fit(feature, scores, drawn), strict=True):
        assert refitted == pytest.approx(reference_fit(feature[row], scores[row], np.ones(400)), abs=1e-4)


def test_unjudged_prompts_do_not_enter_the_regression() -> None:
    draw = np.random.default_rng(6)
    scores, longer_by = (draw.random(80) < 0.5).astype(float).tolist(), draw.normal(0, 50, 80).tolist()
    assert length_controlled([*scores, None], [*longer_by, 1e6]) == length_controlled(scores, longer_by)


def test_without_a_difference_in_length_the_win_rate_is_the_controlled_one() -> None:
    scores = [1.0, 0.0, 1.0, 0.5]
    assert length_controlled(scores, [0, 0, 0, 0]) == win_rate(scores)
    assert length_controlled(scores, [7, 7, 7, 7]) is None  # nothing tells the effect of length apart


@pytest.mark.parametrize(("mean", "known"), [(100, False), (-100, False), (5, True)])
def test_no_rate_at_equal_length_where_no_answers_are_about_equally_long(mean: float, known: bool) -> None:
    draw = np.random.default_rng(8)
    longer_by, scores = draw.normal(mean, 5, 500), (draw.random(500) < 0.7).astype(float)
    found = length_controlled(scores.tolist(), longer_by.tolist())
    assert (found is not None) == known
    if found is not None and found.interval is not None:
        assert found.interval[0] < 0.7 < found.interval[1]


def test_length_is_in_characters_of_the_text() -> None:
    assert length_differences(["four", "née", ""], ["", "né", "ab"]) == [4, 1, -2]
    assert length_differences([" yes" + "\n" * 200], ["yes"]) == [0]  # a judge is not shown the rest


def test_a_thousand_refits_of_a_thousand_prompts_are_quick() -> None:
    draw = np.random.default_rng(7)
    longer_by = draw.normal(30, 90, 1000)
    scores = (draw.random(1000) < 1 / (1 + np.exp(-np.tanh(longer_by / 90)))).astype(float).tolist()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        length_controlled(scores, longer_by.tolist())
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3


# ---- intervals cover as often as they claim ----


def covers(interval: tuple[float, float] | None, truth: float) -> bool:
    assert interval is not None
    return interval[0] <= truth <= interval[1]


@pytest.mark.seconds
def test_intervals_of_a_win_rate_with_ties_cover() -> None:
    draw = np.random.default_rng(8)
    experiments = draw.choice([1.0, 0.5, 0.0], p=[0.45, 0.25, 0.3], size=(EXPERIMENTS, PROMPTS))
    found = [win_rate(scores.tolist()) for scores in experiments]
    share = np.mean([covers(e.interval, 0.575) for e in found if e])
    assert COVERAGE[0] < share < COVERAGE[1]


@pytest.mark.seconds
def test_intervals_of_a_paired_difference_cover() -> None:
    draw = np.random.default_rng(9)
    ease = draw.random((EXPERIMENTS, PROMPTS))
    a = (draw.random(ease.shape) < 0.6 * ease + 0.3).astype(float)
    b = (draw.random(ease.shape) < 0.6 * ease + 0.2).astype(float)
    found = [paired_difference(x.tolist(), y.tolist()) for x, y in zip(a, b, strict=True)]
    share = np.mean([covers(e.interval, 0.1) for e in found if e])
    assert COVERAGE[0] < share < COVERAGE[1]


# Of 100 intervals the covering share has a standard error of 2.2%.
@pytest.mark.parametrize(
    ("experiments", "least", "most"), [(100, 0.89, 1.0), pytest.param(EXPERIMENTS, *COVERAGE, marks=pytest.mark.slow)]
)
@pytest.mark.seconds
def test_intervals_of_a_length_controlled_rate_cover(experiments: int, least: float, most: float) -> None:
    draw = np.random.default_rng(10)
    longer_by = draw.normal(80, 100, (experiments, PROMPTS))
    chance = 1 / (1 + np.exp(-(math.log(0.6 / 0.4) + 1.5 * np.tanh(longer_by / 100))))
    scores = (draw.random(chance.shape) < chance).astype(float)
    found = [length_controlled(s.tolist(), d.tolist()) for s, d in zip(scores, longer_by, strict=True)]
    share = np.mean([covers(e.interval, 0.6) for e in found if e])
    assert least < share < most
    assert np.mean(scores) > 0.7  # far from the 60% at equal length
