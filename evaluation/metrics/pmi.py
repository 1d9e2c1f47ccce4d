"""Pointwise mutual information of prompt and answer under a second model: how much the prompt says of the answer."""

from dataclasses import replace
from typing import TYPE_CHECKING

from evaluation.metrics.base import HIGHER, SECOND, Column, Request, Values
from evaluation.metrics.second_model import SecondModelMetric, SecondModelOptions

if TYPE_CHECKING:
    from evaluation.answers.answer_sets import AnswerSet
    from evaluation.metrics.likelihood import Likelihoods

KEY, WHOLE = "pmi", "pmi_of_answer"


class PMI(SecondModelMetric):
    """log P^(y|x) - log P^(y) of each answer's tokens, which takes a second pass over them: measured when named."""

    name = "pmi"
    summary = "log P^(y|x) - log P^(y) of the answers under the second model, per token (only where it is named)"
    order = 45
    columns = (
        Column(
            KEY,
            "PMI",
            "{:.3f}",
            "mean of (log P^(y|x) - log P^(y)) / |y| of the answers under the second model, in nats per token; "
            "more is better",
            SECOND,
            better=HIGHER,
            unit="nats per token",
            paired=True,
        ),
        Column(
            WHOLE,
            "PMI of the answer",
            "{:.2f}",
            "the same of whole answers, in nats",
            SECOND,
            better=HIGHER,
            unit="nats",
            paired=True,
        ),
    )

    @classmethod
    def needs(cls, options: SecondModelOptions, request: Request) -> str:
        named = "" if cls.name in request.metrics else f"--metrics {cls.name}"
        return super().needs(options, request) or named

    def likelihoods_of(self, answers: "AnswerSet") -> "Likelihoods":
        from evaluation.metrics.likelihood import second_model_logps

        given = super().likelihoods_of(answers)
        if not self.is_of(answers):
            return given
        alone = second_model_logps(
            self.evaluation.store, answers.generations, answers.groups, self.second, without_prompt=True
        )
        problems = [
            problem or (f"{without} without its prompt" if without else "")
            for problem, without in zip(given.problems, alone.problems, strict=True)
        ]
        return replace(given, problems=problems, without_prompt=alone.logps)

    @classmethod
    def of_likelihoods(cls, answers: "AnswerSet", likelihoods: "Likelihoods") -> Values:
        from evaluation.metrics.likelihood import pointwise_mutual_information

        whole = pointwise_mutual_information(likelihoods.logps, likelihoods.without_prompt)
        per_token = [None if v is None else v / n for v, n in zip(whole, likelihoods.tokens, strict=True)]
        return {KEY: per_token, WHOLE: whole}


METRIC = PMI
