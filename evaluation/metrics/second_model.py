"""What metrics under a second model share: its options, and the likelihoods that it gives all answers."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from data.command.errors import UserError
from data.command.options import option
from data.command.wording import counted, is_or_are
from data.manifest import DTYPES
from evaluation.metrics.base import AnswerMetric, PromptEvidence, Request, Values, Which

if TYPE_CHECKING:
    from evaluation.answers.answer_sets import AnswerSet
    from evaluation.metrics.likelihood import Likelihoods
    from evaluation.subject import Evaluation, Part


DEFAULT_DTYPE = "float32"


@dataclass(frozen=True)
class SecondModelOptions:
    """Options of the metrics by a second model."""

    second_model: str | None = option(None, "a stronger model that stands for the truth", metavar="PATH", is_name=True)
    second_model_dtype: str = option(
        DEFAULT_DTYPE, f"that the second model computes in: {', '.join(DTYPES)}", metavar="DTYPE"
    )

    def check(self) -> None:
        """Raise UserError for an unknown dtype, or one of no model."""
        if self.second_model_dtype not in DTYPES:
            raise UserError(
                f"unknown --second_model_dtype '{self.second_model_dtype}'. Use one of {', '.join(DTYPES)}."
            )
        if self.second_model is None and self.second_model_dtype != DEFAULT_DTYPE:
            raise UserError("--second_model_dtype does nothing without --second_model. Give that too, or leave it out.")


class SecondModelMetric(AnswerMetric):
    """A metric of likelihoods under a second model. All answers are scored, and kept: what one metric scored, another
    takes from the store."""

    Options = SecondModelOptions
    record_schema: ClassVar = {"second_model": {"type": ["object", "string", "null"]}}

    @classmethod
    def needs(cls, options: SecondModelOptions, request: Request) -> str:
        return "" if options.second_model else "--second_model"

    def __init__(self, options: SecondModelOptions, evaluation: "Evaluation"):
        from evaluation.metrics.likelihood import SecondModel

        super().__init__(options, evaluation)
        assert options.second_model is not None  # needs
        self.second = SecondModel(options.second_model, dtype=options.second_model_dtype, store=evaluation.store)

    def identity(self) -> dict[str, Any]:
        return {"second_model": self.second.describe()}

    def drop(self) -> None:
        self.second.drop()

    def gather(self, answer_sets: Sequence["AnswerSet"]) -> "LikelihoodEvidence":
        found = {(a.model, a.decoding): self.likelihoods_of(a) for a in answer_sets}
        values = {which: self.of_likelihoods(a, found[which]) for a, which in _by_name(answer_sets) if self.is_of(a)}
        return LikelihoodEvidence(self.columns, values, likelihoods=found, answer_sets=tuple(answer_sets))

    def likelihoods_of(self, answers: "AnswerSet") -> "Likelihoods":
        """What the second model gives the answers, scored or taken from the store."""
        from evaluation.metrics.likelihood import second_model_logps

        return second_model_logps(self.evaluation.store, answers.generations, answers.groups, self.second)

    @classmethod
    @abstractmethod
    def of_likelihoods(cls, answers: "AnswerSet", likelihoods: "Likelihoods") -> Values:
        """The metric's values of the answers, by column."""


@dataclass(frozen=True, kw_only=True)
class LikelihoodEvidence(PromptEvidence):
    """Values by a second model, which also knows what could not be scored, and how texts were read.

    Attributes:
        likelihoods: of each model and decoding.
    """

    likelihoods: "dict[Which, Likelihoods]"
    answer_sets: "tuple[AnswerSet, ...]"

    def notes(self, part: "Part") -> list[str]:
        said = [
            f"{counted(number, f'{decoding} answer')} of {model} {is_or_are(number)} in no mean under the second "
            f"model: {reason}."
            for (model, decoding), likelihoods in self.likelihoods.items()
            for reason, number in likelihoods.unscored(part.prompts).items()
        ]
        by_text = sorted({model for (model, _), likelihoods in self.likelihoods.items() if likelihoods.by == "text"})
        if by_text:
            said.append(
                f"The second model has another tokenizer than {', '.join(by_text)}, so it scored their text as it "
                "tokenises it; log Q is of the tokens that were sampled, one of many ways to write the text."
            )
        return said


def _by_name(answer_sets: Sequence["AnswerSet"]) -> list[tuple["AnswerSet", Which]]:
    return [(answers, (answers.model, answers.decoding)) for answers in answer_sets]
