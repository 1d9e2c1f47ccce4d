"""What a metric is: everything that an evaluation and its report must know of it. Imports nothing heavy.

A metric is a class below `PromptMetric`, `SetMetric`, `CheckpointMetric` or `AnswerMetric`. It lives in a module
`evaluation/metrics/NAME.py`, as METRIC, or in one of your own, named `package.module:NAME`. An evaluation makes one
instance of each metric, lets it gather its evidence of all prompts, which may cost time or money, and measures any part
of the prompts from that.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from data.command.errors import UserError
from data.command.options import NoOptions
from data.command.registry import meaningless
from data.finite import LOOK, first_not_finite
from evaluation.metrics.columns import (
    ANSWERS,
    DIRECTIONS,
    HIGHER,
    LENGTH,
    LOWER,
    MODEL,
    NEITHER,
    SECOND,
    WIN,
    Column,
    Mark,
    Section,
    with_differences,
)
from evaluation.on_demand import OnDemand

if TYPE_CHECKING:
    from evaluation.answers.answer_sets import AnswerSet
    from evaluation.answers.checkpoints import Checkpoint
    from evaluation.metrics.statistics import Difference, Estimate, Measurement
    from evaluation.report.results import AnswerRow
    from evaluation.subject import Evaluation, Part

__all__ = [
    "ANSWERS",
    "HIGHER",
    "LENGTH",
    "LOWER",
    "MODEL",
    "NEITHER",
    "SECOND",
    "TRUTH",
    "WIN",
    "AnswerMetric",
    "CheckpointMetric",
    "Column",
    "Evidence",
    "Mark",
    "Metric",
    "PromptMetric",
    "Request",
    "Section",
    "SetMetric",
    "Values",
]

# A metric's numbers by column, in the order of the prompts, or groups; None where there is no number.
Values = Mapping[str, Sequence[float | None]]
# What answers are compared with that are no model's: the ground truths.
TRUTH = "truth"
# Model and decoding; "" for what needs no answers.
Which = tuple[str, str]


@dataclass(frozen=True)
class Request:
    """What is asked for, beside a metric's own options.

    Attributes:
        dataset: its name.
        models: names of the models that are compared, of a sweep's too.
        metrics: names of those that are measured. Which these are by default hangs on what each needs: `Metric.needs`
            finds those alone that --metrics names.
    """

    dataset: str
    models: Sequence[str] = ()
    metrics: Sequence[str] = ()


class Evidence(ABC):
    """What a metric has found out for all prompts: any part of them is measured from it."""

    @abstractmethod
    def measurements(self, part: "Part", baseline: str = "") -> list["Measurement"]:
        """Measurements of some of the prompts.

        Args:
            baseline: model whose values the other models' are also compared with, prompt by prompt; "" for none.
        """

    def paired(self, part: "Part") -> list["Difference"]:
        """Differences between any two models, paired by prompt, of what says which way is better."""
        return []

    def notes(self, part: "Part") -> list[str]:
        """Sentences that a reader must know beside the numbers."""
        return []

    def annotated(self, row: "AnswerRow", answers: "AnswerSet", index: int) -> list["AnswerRow"]:
        """An answer on the page of samples, with what is known of it; several rows where it was compared several times.

        Args:
            index: of the prompt.
        """
        return [row]

    def spent(self) -> dict[str, Any]:
        """What the evidence took, for the record: no setting, so two evaluations compare whatever they took.

        There each key has SPENT behind it: "judge" -> "judge_spent".
        """
        return {}


# Behind the keys of a record that say what evidence took.
SPENT = "_spent"
# What a record says of every evaluation, see `evaluation.prepared` and `evaluation.run`: no metric may have such a key.
RECORD = (
    *("models", "data", "max_length", "max_new_tokens", "seed", "metrics", "entries", "engine"),
    *("paper", "decodings", "baseline", "sweep"),
)


class Metric:
    """A measure of checkpoints.

    Attributes:
        name: that --metrics takes.
        summary: half a line for --help.
        columns: the numbers that it gives, the one that it is known by first.
        Options: dataclass of its options, see `data.command.options.option`; it may have a method `check` that raises
            UserError. Two metrics may share an option.
        order: metrics come in this order where --metrics names none; alpha is chosen by the first that was measured
            with a criterion. Evidence is always gathered from the last to the first.
        record_schema: JSON schema of each key that the metric adds to the record: those of `identity`, and those of
            `Evidence.spent` with "_spent" behind each.

    Args:
        options: an instance of Options.
        evaluation: what is evaluated.

    Raises:
        UserError: what the options name cannot be used. To be found out before anything is generated.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]]
    Options: ClassVar[type] = NoOptions
    order: ClassVar[int] = 100
    record_schema: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, options: Any, evaluation: "Evaluation"):
        self.options, self.evaluation = options, evaluation
        self._loaded: list[OnDemand[Any]] = []

    @classmethod
    def needs(cls, options: Any, request: Request) -> str:
        """What must be given so that the metric can be measured, e.g. "--embedder"; "" if nothing is missing."""
        return ""

    def more_columns(self) -> list[Column]:
        """Columns that hang on what the options name, beside the class's; differences of theirs are none."""
        return []

    @classmethod
    def criterion(cls) -> Column | None:
        """The column that alpha may be chosen by; None where it is never chosen by this metric."""
        return None

    @classmethod
    def summary_of(cls, record: Mapping[str, Any]) -> str:
        """What a report's first line says beside the prompts, e.g. "500 groups of runs/negatives"; "" for nothing.

        Args:
            record: of a report, which may be without what this metric adds.
        """
        return ""

    @classmethod
    def unlike_paper(cls, record: Mapping[str, Any], task: str) -> list[str]:
        """In what the measurement differs from the paper's, whose numbers stand beside it: a note below says so.

        E.g. "judge GPT-3.5 there, gpt-4o here".

        Args:
            record: see `summary_of`.
            task: of the paper's table.
        """
        return []

    @classmethod
    def check(cls, options: Any, request: Request) -> None:
        """Raise UserError for options that do not fit the request, whether the metric is asked for or not."""

    def identity(self) -> dict[str, Any]:
        """What decides the metric's numbers, as keys of a report's record; by default the options that decide."""
        deciding = {f.name for f in fields(self.options) if f.metadata.get("decides", True)}
        given = {key: value for key, value in asdict(self.options).items() if key in deciding}
        return {self.name: given} if given else {}

    def on_demand(self, load: Callable[..., Any]) -> OnDemand[Any]:
        """A model that is loaded when it is called for, and dropped when the metric has its evidence."""
        self._loaded.append(OnDemand(load))
        return self._loaded[-1]

    def drop(self) -> None:
        """Free what the metric's models take."""
        for model in self._loaded:
            model.drop()


class AnswerMetric(Metric, ABC):
    """A metric of answers.

    Attributes:
        decoding: the one decoding whose answers it is of, which are then made for it; "" for those that are asked for.
    """

    decoding: ClassVar[str] = ""

    @classmethod
    def is_of(cls, answers: "AnswerSet") -> bool:
        """Whether the metric measures these answers."""
        return answers.decoding == cls.decoding if cls.decoding else answers.asked

    @classmethod
    def criterion(cls) -> Column | None:
        """The first column, if a direction of it is better."""
        return cls.columns[0] if cls.columns[0].better != NEITHER else None

    @abstractmethod
    def gather(self, answer_sets: Sequence["AnswerSet"]) -> Evidence:
        """Find out what the metric's numbers follow from, for all prompts. Raises UserError."""


class PromptMetric(AnswerMetric):
    """A metric with a value for each prompt: its numbers are means, and differences from the baseline's are paired."""

    @abstractmethod
    def values(self, answers: "AnswerSet") -> Values:
        """Values of the answers, by column; None where an answer has none."""

    def gather(self, answer_sets: Sequence["AnswerSet"]) -> Evidence:
        found = {(a.model, a.decoding): self.values(a) for a in answer_sets if self.is_of(a)}
        return PromptEvidence(self.columns, found)


class SetMetric(AnswerMetric):
    """A metric of a set of answers, which is no mean over prompts."""

    @abstractmethod
    def estimates(self, answers: "AnswerSet", prompts: Sequence[int]) -> Mapping[str, "Estimate"]:
        """Estimates from the answers to some of the prompts, by column.

        Args:
            prompts: indices.
        """

    def gather(self, answer_sets: Sequence["AnswerSet"]) -> Evidence:
        return SetEvidence(
            {
                (part.name, a.model, a.decoding): self.estimates(a, part.prompts)
                for part in self.evaluation.parts
                for a in answer_sets
                if self.is_of(a)
            }
        )


class CheckpointMetric(Metric, ABC):
    """A metric that needs a checkpoint's log-probabilities, and no answers.

    Attributes:
        of_prompts: there is a value for each prompt; else for each of something else, and then all of them count.
    """

    of_prompts: ClassVar[bool] = True

    @abstractmethod
    def values(self, checkpoint: "Checkpoint", scorer: Callable[[str], Any]) -> Values:
        """Values of a checkpoint, by column.

        Args:
            scorer: dtype -> the checkpoint's scorer, loaded only if it is called for, and dropped with the checkpoint.
        """

    def evidence(self, values: Mapping[Which, Values], checkpoints: Sequence["Checkpoint"]) -> Evidence:
        """What all checkpoints' values are evidence of, once none of the checkpoints is in memory any more."""
        return PromptEvidence(self.columns, values, of_prompts=self.of_prompts)


@dataclass(frozen=True)
class PromptEvidence(Evidence):
    """Evidence of values that are averaged over prompts.

    Attributes:
        columns: of the metric.
        values: model and decoding -> their values.
        of_prompts: they are by prompt, so that a part of the prompts has a part of them.
    """

    columns: tuple[Column, ...]
    values: Mapping[Which, Values]
    of_prompts: bool = True

    def __post_init__(self) -> None:
        """Raise UserError for a value that is not finite: of the mean, nobody could say which prompt made it so."""
        for (model, decoding), by_column in self.values.items():
            for key, values in by_column.items():
                if (index := first_not_finite(values)) is not None:
                    of = f"prompt {index}" if self.of_prompts else f"value {index}"
                    raise _not_finite(f"{key} of {of}", model, decoding, values[index])

    def measurements(self, part: "Part", baseline: str = "") -> list["Measurement"]:
        from evaluation.metrics.statistics import Estimate, Measurement, paired_difference, share

        made: list[Measurement] = []
        for (model, decoding), all_values in self.values.items():
            theirs = self.values.get((baseline, decoding)) if model != baseline else None
            for column in self.columns:
                values = self._of(part, all_values.get(column.key, ()))
                if known := [value for value in values if value is not None]:
                    estimate = (share if column.share else Estimate.of)(known)
                    made.append(Measurement(model, decoding, column.key, estimate))
                if column.paired and theirs is not None:
                    difference = paired_difference(values, self._of(part, theirs.get(column.key, ())))
                    if difference is not None:
                        made.append(Measurement(model, decoding, column.difference_column().key, difference))
        return made

    def paired(self, part: "Part") -> list["Difference"]:
        from evaluation.metrics.statistics import all_differences

        made: list[Difference] = []
        for decoding in dict.fromkeys(decoding for _, decoding in self.values):
            for column in self.columns:
                if column.paired or column.better != NEITHER:
                    found = {
                        model: self._of(part, by_column[column.key])
                        for (model, name), by_column in self.values.items()
                        if name == decoding and by_column.get(column.key)
                    }
                    made += all_differences(column.key, decoding, found)
        return made

    def _of(self, part: "Part", values: Sequence[float | None]) -> Sequence[float | None]:
        return [values[i] for i in part.prompts] if self.of_prompts and values else values


@dataclass(frozen=True)
class SetEvidence(Evidence):
    """Numbers of each part of the prompts: part, model and decoding -> column -> estimate."""

    estimates: Mapping[tuple[str, str, str], Mapping[str, "Estimate"]]

    def __post_init__(self) -> None:
        """Raise UserError for an estimate that is not finite."""
        for (_, model, decoding), by_column in self.estimates.items():
            for key, estimate in by_column.items():
                if first_not_finite([estimate.mean]) is not None:
                    raise _not_finite(key, model, decoding, estimate.mean)

    def measurements(self, part: "Part", baseline: str = "") -> list["Measurement"]:
        from evaluation.metrics.statistics import Measurement

        return [
            Measurement(model, decoding, key, estimate)
            for (name, model, decoding), estimates in self.estimates.items()
            if name == part.name
            for key, estimate in estimates.items()
        ]


def _not_finite(what: str, model: str, decoding: str, value: Any) -> UserError:
    answers = f", answers by {decoding}" if decoding else ""
    return UserError(f"{what}, model '{model}'{answers}, is {value}, which is no finite number. {LOOK}")


def columns_of(metrics: Sequence[type[Metric]]) -> list[Column]:
    """All columns of metrics, differences too."""
    found = [column for metric in metrics for column in with_differences(metric.columns, metric.criterion())]
    alone = {c.key: m.decoding for m in metrics if issubclass(m, AnswerMetric) for c in with_differences(m.columns)}
    return [replace(column, decoding=alone.get(column.key, "")) for column in found]


def fault_of(metric: type[Metric]) -> str:
    """What makes a metric one whose numbers could be neither measured nor shown; "" if nothing."""
    if not issubclass(metric, AnswerMetric | CheckpointMetric):
        return (
            "is of neither answers nor checkpoints, so nothing would be measured. Derive it from PromptMetric, "
            "SetMetric or CheckpointMetric"
        )
    if not getattr(metric, "columns", ()):
        return "has no columns"
    return next(filter(None, (meaningless("better", column.better, DIRECTIONS) for column in metric.columns)), "")


def keys_of_record(metric: type[Metric]) -> list[str]:
    """The keys of a record that are a metric's."""
    return list(dict.fromkeys((metric.name, *metric.record_schema)))


def require_own(metric: type[Metric], keys: Iterable[str]) -> None:
    """Raise UserError for keys that a metric adds to the record without having named them: they may be another's."""
    for key in keys:
        if key not in keys_of_record(metric):
            raise UserError(f"metric '{metric.name}' adds '{key}' to the record. Name it in its record_schema.")
