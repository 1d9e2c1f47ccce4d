"""Reverse KL divergence from a second model that stands for the truth (ACL eq. 9)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.metrics.base import LOWER, SECOND, Column, Values
from evaluation.metrics.second_model import LikelihoodEvidence, SecondModelMetric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evaluation.answers.answer_sets import AnswerSet
    from evaluation.metrics.likelihood import Likelihoods
    from evaluation.subject import Part

KEY = "reverse_kl"


class ReverseKL(SecondModelMetric):
    """Reverse KL from one draw per prompt, of the model's whole distribution."""

    name = "reverse_kl"
    summary = "log Q(y|x) - log P^(y|x) over the model's own samples, P^ the second model"
    order = 30
    decoding = "sample"
    columns = (
        Column(
            KEY,
            "reverse KL",
            "{:.3f}",
            "mean of log Q(y|x) - log P^(y|x) over the model's own samples, in nats, P^ the second model; "
            "less is better",
            SECOND,
            better=LOWER,
            unit="nats",
            paired=True,
            figure=True,
            curve=True,
        ),
    )

    @classmethod
    def of_likelihoods(cls, answers: "AnswerSet", likelihoods: "Likelihoods") -> Values:
        from evaluation.metrics.likelihood import reverse_kl

        return {KEY: reverse_kl([sample.logp for sample in answers.samples], likelihoods.logps)}

    def gather(self, answer_sets: "Sequence[AnswerSet]") -> "ReverseKLEvidence":
        found = super().gather(answer_sets)
        return ReverseKLEvidence(
            found.columns, found.values, likelihoods=found.likelihoods, answer_sets=found.answer_sets
        )


@dataclass(frozen=True, kw_only=True)
class ReverseKLEvidence(LikelihoodEvidence):
    """Values of metric `reverse_kl`, with a note where samples were cut."""

    def notes(self, part: "Part") -> list[str]:
        said = super().notes(part)
        sampled = [a.samples[i] for a in self.answer_sets if ReverseKL.is_of(a) for i in part.prompts]
        if any(sample.finish_reason == "length" for sample in sampled):
            said.append("Reverse KL: samples that hit the length limit count up to the limit, under both models.")
        return said


METRIC = ReverseKL
