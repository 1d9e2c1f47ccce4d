"""What an objective is: its options, the terms of its loss, its metrics, and what it is trained on.

An entry is a module of this home that defines OBJECTIVE, or `package.module:NAME` of one's own. Its module is imported
by --help, so torch is imported inside of functions only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from data.command.options import NoOptions
from data.command.registry import meaningless

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

    from trainer.groups.dataset import PackedGroups
    from trainer.ingredients import Setup
    from trainer.objectives.rewards import Beta
    from trainer.scoring.prepared_model import PreparedModel

# What an objective is trained on: ground truths alone; groups, a ground truth with its negatives and the reference's
# log-probabilities; pairs of a ground truth and one negative, made from groups once.
Needs = Literal["truths", "groups", "pairs"]
MeanOver = Literal["groups", "truth tokens"]
# Before a term's name in logs: its value, and what that is while the policy is the reference.
TERM, START = "loss/", "start/"


@dataclass(frozen=True)
class Term:
    """A term of a loss: weight x total / (groups, or tokens of the ground truths, of the whole optimiser step).

    Attributes:
        total: scalar, the sum over the groups of one forward pass, with its gradient.
        mean_over: what the step's sum is divided by.
        weight: of the term in the loss; the term is logged without it, as loss/NAME. A single term of weight 1 is the
            loss, and not logged a second time.
    """

    total: "Tensor"
    mean_over: MeanOver = "groups"
    weight: float = 1.0


@dataclass(frozen=True)
class Expected:
    """What a term must be while the policy is the reference.

    Attributes:
        term: name of the term.
        formula: for the log, e.g. "log K".
        values: one per group, [G].
    """

    term: str
    formula: str
    values: "Tensor"


class Objective:
    """An objective. `name`, `summary` and `terms` (or `own_trainer`) are given, and of the rest what differs.

    Attributes:
        name: on the command line, in records and logs.
        summary: half a line for --help.
        Options: frozen dataclass of `data.command.options.option` fields, with a `check` that raises UserError. A field
            marked `decides=False` does not decide the result. One marked `idle_elsewhere=True` may be given to
            objectives that lack it, so that one YAML file serves several.
        needs: what it is trained on. Pairs are for objectives with a trainer of their own.
        dropout: whether the policy keeps its dropout. Without it the policy starts as the reference was scored.
        from_scratch: whether random weights are a start.
        learns_order: whether its loss uses `PackedGroups.ranks`. One that says False also trains on negatives that the
            ranking signal has no value for.
        remedies: what to try when the ground truths become less likely than under the reference.
        done_when_decided: True where a group whose softmax over h gives the ground truth nearly all teaches next to
            nothing more, and a run is to be told so, from `contrast/decided`.
    """

    name: str
    summary: str
    Options: type = NoOptions
    needs: Needs = "groups"
    dropout: bool = False
    from_scratch: bool = False
    learns_order: bool = True
    remedies: str = "a smaller --learning_rate, fewer steps"
    done_when_decided: bool = False

    def terms(self, policy_logps: "Tensor", groups: "PackedGroups", options: Any) -> Mapping[str, Term]:
        """The loss of one forward pass as named terms, in every pass the same names; their sum is the loss.

        Args:
            policy_logps: [G, K] in nats, each continuation's sum over its tokens under the policy. Candidate 0 is the
                ground truth.
            groups: with the reference's log-probabilities and ranks, [G, K], and the mask of what exists.
            options: an instance of `Options`.
        """
        raise NotImplementedError

    def metrics(self, policy_logps: "Tensor", groups: "PackedGroups", options: Any) -> Mapping[str, "Tensor"]:
        """What is logged beside the terms: name -> [n] values, of which the log holds the mean. Args as for `terms`."""
        from trainer.objectives.rewards import contrast_metrics, h_per_token, preference_metrics, strategy_metrics

        if self.needs == "truths":
            return {"logps/ground_truth": policy_logps[:, 0]}
        logps, mask, scale = (policy_logps, groups.reference_logps), groups.tokens.mask, self.scale(groups, options)
        metrics = preference_metrics(*logps, groups.ranks, beta=scale, mask=mask)
        if len(groups.strategies) > 1:
            of_them = groups.strategy, groups.strategies
            metrics |= strategy_metrics(*logps, groups.ranks, *of_them, beta=scale, mask=mask)
        metrics |= contrast_metrics(*logps, beta=scale, mask=mask)
        lengths = groups.tokens.lengths
        metrics["contrast/h_per_token"] = h_per_token(*logps, lengths, beta=self.beta(options), mask=mask)
        if expected := self.expected_at_start(groups, options):
            metrics[f"{START}{expected.term}"] = expected.values
        return metrics

    def expected_at_start(self, groups: "PackedGroups", options: Any) -> Expected | None:
        """What a term must be while the policy is the reference; None where that is not known."""
        return None

    def beta(self, options: Any) -> float:
        """What the loss multiplies differences of log-probabilities with; rounding errors grow as much."""
        return getattr(options, "beta", 1.0)

    def scale(self, groups: "PackedGroups", options: Any) -> "Beta":
        """What h multiplies each candidate's log-ratio with: `beta`, or [G, K] where each has its own."""
        return self.beta(options)

    @property
    def of_logps_alone(self) -> bool:
        """Whether the loss follows from log-probabilities of groups: no trainer, inputs or dropout of its own."""
        kind = type(self)
        own = kind.own_trainer is not Objective.own_trainer or kind.mix is not Objective.mix
        return self.needs == "groups" and not own and not self.dropout

    def copies(self, options: Any) -> int:
        """How often each ground truth is laid out in training, for `mix` to make as many inputs of it."""
        return 1

    def mix(
        self, policy: "PreparedModel", groups: "PackedGroups", options: Any, seed: tuple[int, int]
    ) -> "PackedGroups":
        """The groups with the inputs that are trained on.

        Args:
            groups: each continuation `copies` times.
            seed: the run's, and the optimiser step.
        """
        return groups

    def own_trainer(self, setup: "Setup", options: Any) -> "Trainer | None":
        """The trainer of a run where the objective brings one; None: the one for packed groups, which asks for `terms`.

        Args:
            setup: what a trainer is made from; its policy is not loaded yet.
            options: an instance of `Options`.

        Raises:
            UserError: the data does not suit; before the policy is loaded.
        """
        return None


def fault_of(objective: Objective) -> str:
    """What makes an objective none that can be trained on; "" if nothing."""
    if fault := meaningless("needs", objective.needs, get_args(Needs)):
        return fault
    kind, own_trainer = type(objective), objective.needs == "pairs"  # that pairs have one is checked when it is made
    own_trainer |= kind.own_trainer is not Objective.own_trainer
    return "" if own_trainer or kind.terms is not Objective.terms else "lacks terms"
