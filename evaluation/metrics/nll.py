"""Negative log-likelihood of answers under a second model that stands for the truth (ACL eq. 10)."""

from typing import TYPE_CHECKING

from evaluation.metrics.base import LOWER, SECOND, Column, Values
from evaluation.metrics.second_model import SecondModelMetric

if TYPE_CHECKING:
    from evaluation.answers.answer_sets import AnswerSet
    from evaluation.metrics.likelihood import Likelihoods

KEY = "nll"


class NLL(SecondModelMetric):
    """Negative log-likelihood of each answer under the second model, per token of the answer."""

    name = "nll"
    summary = "-log P^(y|x) / |y| of the answers under the second model"
    order = 40
    columns = (
        Column(
            KEY,
            "NLL",
            "{:.3f}",
            "mean of -log P^(y|x) / |y| of the answers under the second model, in nats per token; less is better",
            SECOND,
            better=LOWER,
            unit="nats per token",
            paired=True,
            figure=True,
        ),
    )

    @classmethod
    def of_likelihoods(cls, answers: "AnswerSet", likelihoods: "Likelihoods") -> Values:
        from evaluation.metrics.likelihood import length_normalised_nll

        return {KEY: length_normalised_nll(likelihoods.logps, likelihoods.tokens)}


METRIC = NLL
