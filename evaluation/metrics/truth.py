"""How likely the ground truths are under a checkpoint itself, and whether a second model knows them better."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from data.command.wording import counted
from evaluation.metrics.base import MODEL, CheckpointMetric, Column, Evidence, PromptEvidence, Values, Which
from evaluation.metrics.second_model import SecondModelMetric, SecondModelOptions

if TYPE_CHECKING:
    from evaluation.answers.checkpoints import Checkpoint
    from evaluation.metrics.likelihood import Likelihoods
    from evaluation.subject import Evaluation, Part

SUM, PER_TOKEN = "truth_logp", "truth_logp_per_token"
DTYPE = "float32"


class Truth(CheckpointMetric):
    """Log-probabilities of the ground truths in nats, per continuation and per token.

    With a second model, which stands for the truth in other metrics: also whether it can.
    """

    name = "truth"
    Options = SecondModelOptions
    record_schema: ClassVar = SecondModelMetric.record_schema
    summary = "log-probability of the ground truths"
    order = 70
    columns = (
        Column(
            SUM,
            "truth logp",
            "{:.2f}",
            "log-probability of the ground truth in nats",
            MODEL,
            unit="nats",
            paired=True,
        ),
        Column(
            PER_TOKEN,
            "per token",
            "{:.3f}",
            "log-probability of the ground truth, per token",
            MODEL,
            unit="nats per token",
        ),
    )

    def __init__(self, options: SecondModelOptions, evaluation: "Evaluation"):
        super().__init__(options, evaluation)
        self.second = None
        if options.second_model:
            from evaluation.metrics.likelihood import SecondModel

            self.second = SecondModel(options.second_model, dtype=options.second_model_dtype, store=evaluation.store)

    def identity(self) -> dict[str, Any]:
        return {"second_model": self.second.describe()} if self.second else {}

    def values(self, checkpoint: "Checkpoint", scorer: Callable[[str], Any]) -> Values:
        from evaluation.metrics.logps import truth_logps

        groups = checkpoint.groups
        logps = truth_logps(self.evaluation.store, checkpoint.identity, groups, functools.partial(scorer, DTYPE))
        return {SUM: logps, PER_TOKEN: [logp / len(g.response_ids) for logp, g in zip(logps, groups, strict=True)]}

    def evidence(self, values: Mapping[Which, Values], checkpoints: Sequence["Checkpoint"]) -> Evidence:
        if not self.second:
            return super().evidence(values, checkpoints)
        from evaluation.metrics.likelihood import truths_by

        theirs = {c.name: truths_by(self.second, self.evaluation.store, c) for c in checkpoints}
        self.second.drop()
        return BesideSecond(self.columns, values, second=self.second.path, theirs=theirs)


@dataclass(frozen=True, kw_only=True)
class BesideSecond(PromptEvidence):
    """Values of metric `truth` beside a second model's, with a note of the models that know the truths better.

    Attributes:
        second: the second model's path.
        theirs: model -> what the second model gives the ground truths.
    """

    second: str
    theirs: "Mapping[str, Likelihoods]"

    def notes(self, part: "Part") -> list[str]:
        from evaluation.gaps import distinguishable
        from evaluation.metrics.statistics import paired_difference

        ahead, said = [], []
        for (model, _), values in self.values.items():
            by_second = self.theirs[model]
            own, theirs = ([logps[i] for i in part.prompts] for logps in (values[SUM], by_second.logps))
            difference = paired_difference(own, theirs)
            if difference is not None and difference.mean > 0 and distinguishable(difference):
                ahead.append(f"{model} (by {difference.mean:.2f} ± {difference.standard_error:.2f} nats per truth)")
            said += [
                f"{counted(number, 'ground truth')} could not be scored by the second model: {reason}."
                for reason, number in by_second.unscored(part.prompts).items()
            ]
        if ahead:
            said.append(
                f"The second model '{self.second}' knows the ground truths less well than {', '.join(ahead)}, unless "
                "what knows them better was trained on them. What is measured by the second model (reverse KL, NLL, "
                "PMI) says how near answers come to it, not to the truth: take one that knows them better."
            )
        return said


METRIC = Truth
