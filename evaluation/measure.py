"""From answers to measurements: what costs is found out for all prompts once, the rest for any part of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data.schema import Group
from evaluation.judge import Comparison, Judge, Outcome
from evaluation.likelihood import SecondLogps, length_normalised_nll, reverse_kl
from evaluation.mauve_score import mauve
from evaluation.metrics import correct
from evaluation.statistics import Estimate, Measurement
from evaluation.text_statistics import text_measurements
from evaluation.win_rate import counts, difference, length_controlled, win_rate
from negatives_gen.engine import Sample


@dataclass
class Answers:
    """One checkpoint's answers by one decoding, and what is known of them: one entry per prompt, in the same order.

    Attributes:
        model, decoding: their names.
        hash: of the generation set.
        asked: whether the user asked for this decoding; else it serves reverse KL alone.
        second: log-probabilities under the second model.
        outcomes: opponent -> the judge's.
        features: [N, D], for MAUVE.
        similarity: [N], to the ground truths.
    """

    model: str
    decoding: str
    hash: str
    groups: Sequence[Group]
    samples: Sequence[Sample]
    asked: bool = True
    second: SecondLogps | None = None
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    features: np.ndarray | None = None
    similarity: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """[N], characters."""
        return np.array([len(s.text) for s in self.samples], dtype=np.float64)


def comparisons(answers: Answers, others: Sequence[str]) -> list[Comparison]:
    """What the judge is asked of these answers against others, in the order of the prompts."""
    return [
        Comparison(group.id, group.prompt, sample.text, other)
        for group, sample, other in zip(answers.groups, answers.samples, others, strict=True)
    ]


def judge_all(every: Sequence[Answers], opponents: Sequence[str], judge: Judge) -> None:
    """Fill in the outcomes against each opponent: "truth", or the model of that name by the same decoding."""
    by_name = {(answers.model, answers.decoding): answers for answers in every}
    for opponent in opponents:
        for answers in every:
            if not answers.asked or answers.model == opponent:
                continue
            others = _texts(by_name, opponent, answers)
            answers.outcomes[opponent] = judge.judge(comparisons(answers, others))


def measure(
    every: Sequence[Answers],
    metrics: Sequence[str],
    kept: np.ndarray,
    *,
    truth_features: np.ndarray | None = None,
    baseline: str = "",
    seed: int = 0,
) -> list[Measurement]:
    """The measurements of answers to some of the prompts.

    Args:
        kept: indices of the prompts.
        truth_features: [N, D], of the ground truths, for MAUVE.
        baseline: model that win rates are also given as a difference from.
    """
    found: list[Measurement] = []
    for answers in every:
        for metric, estimate in _of_answers(answers, metrics, kept, truth_features, seed).items():
            found.append(Measurement(answers.model, answers.decoding, metric, estimate))
        for opponent, outcomes in answers.outcomes.items():
            for metric, estimate in _of_outcomes(every, answers, opponent, outcomes, kept, baseline).items():
                found.append(Measurement(answers.model, answers.decoding, metric, estimate, opponent))
    return found


def _of_answers(
    answers: Answers, metrics: Sequence[str], kept: np.ndarray, truth_features: np.ndarray | None, seed: int
) -> dict[str, Estimate]:
    groups, samples = [answers.groups[i] for i in kept], [answers.samples[i] for i in kept]
    found: dict[str, Estimate] = {}
    if answers.second is not None:
        log_p, tokens = answers.second.logps[kept], answers.second.tokens[kept]
        if "reverse_kl" in metrics and answers.decoding == "sample":
            found["reverse_kl"] = reverse_kl([s.logp for s in samples], log_p)
        if "nll" in metrics and answers.asked:
            found["nll"] = length_normalised_nll(log_p, tokens)
    if not answers.asked:
        return found
    if "correct" in metrics:
        found["correct"] = Estimate.of(correct(groups, samples))
    if answers.similarity is not None:
        found["similarity"] = Estimate.of(answers.similarity[kept])
    if answers.features is not None and truth_features is not None:
        found["mauve"] = mauve(truth_features[kept], answers.features[kept], seed)
    if "text" in metrics:
        found |= text_measurements(samples)
    return found


def _of_outcomes(
    every: Sequence[Answers], answers: Answers, opponent: str, outcomes: list[Outcome], kept: np.ndarray, baseline: str
) -> dict[str, Estimate]:
    """Win rate, length-controlled win rate, flips, ties, what was not judged, and the difference from the baseline."""
    by_name = {(a.model, a.decoding): a for a in every}
    others = np.array([float(len(text)) for text in _texts(by_name, opponent, answers)])
    part = [outcomes[i] for i in kept]
    scores = [outcome.score for outcome in part]
    found = dict(counts(part))
    if all(score is None for score in scores):
        return found
    found["win_rate"] = win_rate(scores)
    found["win_rate_length_controlled"] = length_controlled(scores, (answers.lengths - others)[kept])
    other = by_name.get((baseline, answers.decoding))
    if other is not None and other is not answers and opponent in other.outcomes:
        theirs = [other.outcomes[opponent][i].score for i in kept]
        found["win_rate_difference"] = difference(scores, theirs)
    return found


def _texts(by_name: dict[tuple[str, str], Answers], opponent: str, answers: Answers) -> list[str]:
    if opponent == "truth":
        return [group.response for group in answers.groups]
    return [sample.text for sample in by_name[opponent, answers.decoding].samples]
