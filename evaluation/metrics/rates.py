"""Win rates from outcomes: counted, plain, and at equal length.

A score is 1 if the answer wins, 0.5 for a tie, 0 if the other wins, None if the pair was not judged. Pairs that were
not judged are left out, never counted as losses; `counts` says how many and why.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.judging.base import Outcome
from evaluation.metrics.statistics import Estimate, bootstrap, bootstrapped_share, weights_of

# Of the logistic regression: with perfectly separated outcomes its maximum lies at infinity. Beside the information
# in n outcomes, up to n / 4, this is nothing.
RIDGE = 1e-2
# Newton's steps are held to this length: far from the optimum the curvature is next to none, and a full step flies off.
LONGEST_STEP = 2.0
# After a step this short the next one would be of the order of its square.
TOLERANCE = 1e-4
MAX_STEPS = 100
# Share of the answers that must not be longer than the others, and that must not be shorter: else "equally long" lies
# beyond what was seen, and a rate there is a guess that looks sure.
SUPPORT = 0.05
# Numbers of each of the few matrices [rows, n] that are held at a time: they then fit into the processor's cache.
ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Counts:
    """How the pairs of one comparison came out.

    Attributes:
        wins, ties, losses: the judged pairs.
        flips: judged pairs whose verdict went with the order of the answers; they are among the ties.
        flip_rate: flips among the judged pairs with a verdict in both orders; None if there is none.
        not_judged: see `not_judged`.
    """

    wins: int
    ties: int
    losses: int
    flips: int
    flip_rate: Estimate | None
    not_judged: dict[str, int]


def counts(outcomes: Sequence[Outcome]) -> Counts:
    """Count outcomes by kind: wins, ties, losses, flips, not judged."""
    judged = [outcome for outcome in outcomes if outcome.score is not None]
    scores = Counter(outcome.score for outcome in judged)
    flipped = [float(outcome.flipped) for outcome in judged if len(outcome.verdicts) == 2]
    return Counts(
        wins=scores[1],
        ties=scores[0.5],
        losses=scores[0],
        flips=int(sum(flipped)),
        flip_rate=bootstrapped_share(flipped) if flipped else None,
        not_judged=not_judged(outcomes),
    )


def not_judged(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Reason -> pairs without a score. What stands behind a reason's colon is of one pair, and left out."""
    return dict(Counter(outcome.reason.partition(":")[0] for outcome in outcomes if outcome.score is None))


def win_rate(scores: Sequence[float | None]) -> Estimate | None:
    """The mean score over the judged prompts, a tie counting half; None if none was judged."""
    judged = [score for score in scores if score is not None]
    return bootstrapped_share(judged) if judged else None


def length_differences(answers: Sequence[str], others: Sequence[str]) -> list[int]:
    """By how many characters each answer is longer than the other: AlpacaEval's measure, the same for any tokenizer.

    White space at the ends does not count: a judge is not shown it.
    """
    return [len(answer.strip()) - len(other.strip()) for answer, other in zip(answers, others, strict=True)]


def length_controlled(scores: Sequence[float | None], differences: Sequence[float]) -> Estimate | None:
    """The win rate that the judge would give if answer and other were equally long.

    AlpacaEval 2's length-controlled win rate (Dubois et al., arXiv 2404.04475) with its length term alone: logistic
    regression of the score on an intercept and tanh(length difference / its standard deviation), read off at no
    difference. Interval and standard error by refitting on the resamples of the plain win rate; the lengths keep the
    unit they have in the sample itself.

    Args:
        differences: by how much each answer is longer than the other, in any one unit; see `length_differences`.

    Returns:
        The win rate itself where all scores are equal, or all answers as long as the others. None if none was judged,
        if all lengths differ by the same amount (nothing then tells its effect apart), or if next to all answers are
        longer, or shorter, than the others: see SUPPORT.
    """
    pairs = [(score, d) for score, d in zip(scores, differences, strict=True) if score is not None]
    if not pairs:
        return None
    score, length = np.array(pairs, dtype=np.float64).T
    spread = length.std(ddof=1) if len(length) > 1 else 0.0
    if min((length <= 0).mean(), (length >= 0).mean()) < SUPPORT:
        return None
    if spread == 0 or score.min() == score.max():
        return win_rate(scores)
    feature = np.tanh(length / spread)
    fitted = fit(feature, score, np.ones((1, len(score))))
    error, interval = bootstrap(
        len(score), lambda indices: _sigmoid(fit(feature, score, weights_of(indices), start=fitted[0])[:, 0])
    )
    return Estimate(float(_sigmoid(fitted[0, 0])), error, len(score), interval)


def fit(feature: np.ndarray, score: np.ndarray, weights: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Weighted logistic regressions of the same examples, one per row of weights, by Newton's method.

    Args:
        feature: [n].
        score: [n], from 0 to 1.
        weights: [R, n], of each example in each regression.
        start: [2], coefficients to start from; zero without.

    Returns:
        [R, 2]: intercept and slope that maximise the log-likelihood less RIDGE / 2 times their squares.
    """
    powers = np.stack([np.ones_like(feature), feature, feature**2], axis=1)
    rows = max(1, ELEMENTS // len(score))
    found = [_fit_rows(powers, score, weights[i : i + rows], start) for i in range(0, len(weights), rows)]
    return np.concatenate(found)


def _fit_rows(powers: np.ndarray, score: np.ndarray, weights: np.ndarray, start: np.ndarray | None) -> np.ndarray:
    found = np.tile(np.zeros(2) if start is None else start, (len(weights), 1))
    target = weights @ (powers[:, :2] * score[:, None])
    going = np.arange(len(weights))
    for _ in range(MAX_STEPS):
        chance = _sigmoid(found[going] @ powers[:, :2].T)
        expected = weights * chance
        gradient = target - expected @ powers[:, :2] - RIDGE * found[going]
        a, b, d = ((expected * (1 - chance)) @ powers).T + np.array([[RIDGE], [0.0], [RIDGE]])
        step = np.stack([d * gradient[:, 0] - b * gradient[:, 1], a * gradient[:, 1] - b * gradient[:, 0]], axis=1)
        step /= (a * d - b * b)[:, None]
        length = np.linalg.norm(step, axis=1)
        found[going] += step * np.minimum(1.0, LONGEST_STEP / np.maximum(length, TOLERANCE))[:, None]
        on = length > TOLERANCE
        if not on.any():
            break
        going, weights, target = going[on], weights[on], target[on]
    return found


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
