"""From answers to measurements: what costs is found out for all prompts once, the rest for any part of them."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.schema import Group
from evaluation.answers.generations import GenerationSet
from evaluation.config import TRUTH
from evaluation.judging.chat_judge import UNREADABLE, Comparison, Judge, Outcome
from evaluation.metrics.likelihood import Likelihoods, length_normalised_nll, reverse_kl
from evaluation.metrics.ranking import correct
from evaluation.metrics.statistics import Estimate, Measurement, share
from evaluation.metrics.text_statistics import text_measurements
from evaluation.metrics.win_rate import counts, difference, length_controlled, length_differences, win_rate
from negatives_gen.models.engine import Sample

# MAUVE of some answers against the ground truths of their groups.
Mauve = Callable[[Sequence[Group], Sequence[str]], Estimate]


@dataclass
class Answers:
    """One checkpoint's answers by one decoding, and what is known of them: one entry per prompt, in the same order.

    Attributes:
        model, decoding: their names.
        asked: whether the user asked for this decoding; else it serves reverse KL alone.
        second: likelihoods under the second model.
        outcomes: opponent -> the judge's.
        similarity: [N], to the ground truths.
    """

    model: str
    decoding: str
    groups: Sequence[Group]
    generations: GenerationSet
    asked: bool = True
    second: Likelihoods | None = None
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    similarity: np.ndarray | None = None

    @property
    def samples(self) -> list[Sample]:
        return self.generations.samples

    @functools.cached_property
    def right(self) -> list[float]:
        """1 where code finds the answer correct, else 0; for `--dataset facts` alone."""
        return correct(self.groups, self.samples)

    @property
    def texts(self) -> list[str]:
        return [sample.text for sample in self.samples]


def judge_all(every: Sequence[Answers], opponents: Sequence[str], judge: Judge) -> None:
    """Fill in the outcomes against each opponent: "truth", or the model of that name by the same decoding."""
    for opponent in opponents:
        for answers in every:
            if answers.asked and answers.model != opponent:
                others = _other_texts(every, answers, opponent)
                rows = zip(answers.groups, answers.texts, others, strict=True)
                answers.outcomes[opponent] = judge.judge(
                    [Comparison(g.id, g.query, a, b, g.prompt, g.messages) for g, a, b in rows]
                )


def measure(
    every: Sequence[Answers],
    metrics: Sequence[str],
    kept: Sequence[int],
    *,
    mauve: Mauve | None = None,
    baseline: str = "",
) -> list[Measurement]:
    """The measurements of the answers to some of the prompts.

    Args:
        kept: indices of the prompts.
        baseline: model that the other models' values by prompt are also given as a difference from.
    """
    found: list[Measurement] = []
    for answers in every:
        estimates = _of_answers(answers, metrics, kept, mauve) | _differences(every, answers, metrics, kept, baseline)
        for metric, estimate in estimates.items():
            found.append(Measurement(answers.model, answers.decoding, metric, estimate))
        for opponent in answers.outcomes:
            for metric, estimate in _of_outcomes(every, answers, opponent, kept, baseline).items():
                found.append(Measurement(answers.model, answers.decoding, metric, estimate, opponent))
    return found


def _of_answers(
    answers: Answers, metrics: Sequence[str], kept: Sequence[int], mauve: Mauve | None
) -> dict[str, Estimate]:
    groups, samples = [answers.groups[i] for i in kept], [answers.samples[i] for i in kept]
    found: dict[str, Estimate] = {}
    for metric, values in _by_prompt(answers, metrics, kept).items():
        known = [value for value in values if value is not None]
        if known:
            found[metric] = share(known) if metric == "correct" else Estimate.of(known)
    if not answers.asked:
        return found
    if mauve is not None:
        found["mauve"] = mauve(groups, [sample.text for sample in samples])
    if "text" in metrics:
        found |= text_measurements(samples)
    return found


def _by_prompt(answers: Answers, metrics: Sequence[str], kept: Sequence[int]) -> dict[str, Sequence[float | None]]:
    """Metrics that have a value for each prompt, in the order of `kept`; None where the second model scored nothing."""
    found: dict[str, Sequence[float | None]] = {}
    if answers.second is not None:
        log_p = [answers.second.logps[i] for i in kept]
        if "reverse_kl" in metrics and answers.decoding == "sample":
            found["reverse_kl"] = reverse_kl([answers.samples[i].logp for i in kept], log_p)
        if "nll" in metrics and answers.asked:
            found["nll"] = length_normalised_nll(log_p, [answers.second.tokens[i] for i in kept])
    if answers.asked and "correct" in metrics:
        found["correct"] = [answers.right[i] for i in kept]
    if answers.asked and answers.similarity is not None:
        found["similarity"] = answers.similarity[list(kept)].tolist()
    return found


def _differences(
    every: Sequence[Answers], answers: Answers, metrics: Sequence[str], kept: Sequence[int], baseline: str
) -> dict[str, Estimate]:
    """From the baseline's values, paired by prompt: what makes a prompt easy or hard for both cancels."""
    other = _same_decoding(every, answers, baseline)
    if other is None or other is answers:
        return {}
    theirs = _by_prompt(other, metrics, kept)
    found: dict[str, Estimate] = {}
    for metric, values in _by_prompt(answers, metrics, kept).items():
        estimate = difference(values, theirs[metric])
        if estimate is not None:
            found[f"{metric}_difference"] = estimate
    return found


def _of_outcomes(
    every: Sequence[Answers], answers: Answers, opponent: str, kept: Sequence[int], baseline: str
) -> dict[str, Estimate]:
    """Win rate, also at equal length and as a difference from the baseline's; wins, ties, losses, not judged; flips.

    These only if a pair has verdicts in both orders: else there can be none, which says nothing of the judge.
    """
    outcomes = [answers.outcomes[opponent][i] for i in kept]
    scores = [outcome.score for outcome in outcomes]
    differences = length_differences(answers.texts, _other_texts(every, answers, opponent))
    against_same = _same_decoding(every, answers, baseline)
    found = {
        "win_rate": win_rate(scores),
        "win_rate_length_controlled": length_controlled(scores, [differences[i] for i in kept]),
    }
    if against_same is not None and against_same is not answers and opponent in against_same.outcomes:
        theirs = [against_same.outcomes[opponent][i].score for i in kept]
        found["win_rate_difference"] = difference(scores, theirs)
    counted = counts(outcomes)
    numbers = {
        "wins": counted.wins,
        "ties": counted.ties,
        "losses": counted.losses,
        "unparsed": sum(counted.not_judged.get(reason, 0) for reason in UNREADABLE),
        "not_judged": sum(counted.not_judged.values()),
    }
    if counted.flip_rate is not None:
        numbers["flips"] = counted.flips
    found |= {name: Estimate(float(number), math.nan, len(outcomes)) for name, number in numbers.items()}
    found["flip_rate"] = counted.flip_rate
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _other_texts(every: Sequence[Answers], answers: Answers, opponent: str) -> list[str]:
    """What the answers are compared with, in the order of the prompts."""
    if opponent == TRUTH:
        return [group.response for group in answers.groups]
    other = _same_decoding(every, answers, opponent)
    assert other is not None  # EvaluateConfig.check
    return other.texts


def _same_decoding(every: Sequence[Answers], answers: Answers, model: str) -> Answers | None:
    """Another model's answers by the same decoding."""
    return next((a for a in every if (a.model, a.decoding) == (model, answers.decoding)), None)
