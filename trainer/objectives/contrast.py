"""What cpo, cpo-rank and nca share: a contrast of K candidates, and an MLE term beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.command.errors import UserError
from data.command.options import option
from trainer.objectives.base import Objective, Term

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.groups.dataset import PackedGroups
    from trainer.objectives.rewards import Beta

LENGTH = "length"


@dataclass(frozen=True)
class Temperature:
    """Options of objectives whose loss multiplies differences of log-probabilities."""

    beta: float = option(5.0, "temperature of the contrast; ignored by objectives without one", idle_elsewhere=True)

    def check(self) -> None:
        """Raise UserError for a temperature that is not above 0."""
        if not self.beta > 0:
            raise UserError(f"--beta must be above 0, got {self.beta}.")


@dataclass(frozen=True)
class ContrastOptions(Temperature):
    """Options of a contrast with an MLE term beside it."""

    sft_weight: float = option(0.0, "weight of the MLE term on the ground truths, per token, beside the contrast")
    loss_normalize: str | None = option(
        None,
        f"{LENGTH}: h per token, each candidate's log-ratio divided by its own number of tokens; not the paper's loss "
        "(default: as the paper, their sum)",
        metavar="HOW",
    )

    def check(self) -> None:
        """Raise UserError for a temperature that is not above 0, a negative weight or an unknown normalisation."""
        super().check()
        if self.loss_normalize not in (None, LENGTH):
            raise UserError(f"--loss_normalize can be {LENGTH}, got '{self.loss_normalize}'. Leave it out for sums.")
        if not self.sft_weight >= 0:
            raise UserError(f"--sft_weight must be 0 or more, got {self.sft_weight}.")


class Contrast(Objective):
    """A contrast over the candidates of a group, + sft_weight x MLE on the ground truths from the same forward pass."""

    Options = ContrastOptions
    remedies = "a smaller --learning_rate, fewer steps, --sft_weight 0.1 to 1"

    def contrast(self, policy_logps: "Tensor", groups: "PackedGroups", beta: "Beta") -> "Tensor":
        """The mean over the groups, a scalar."""
        raise NotImplementedError

    def scale(self, groups: "PackedGroups", options: ContrastOptions) -> "Beta":
        if options.loss_normalize == LENGTH:
            return options.beta / groups.tokens.lengths.clamp(min=1)
        return options.beta

    def terms(self, policy_logps: "Tensor", groups: "PackedGroups", options: ContrastOptions) -> Mapping[str, Term]:
        from trainer.objectives.losses import mle_loss

        terms = {"contrast": Term(self.contrast(policy_logps, groups, self.scale(groups, options)) * groups.num_groups)}
        if options.sft_weight:
            terms["sft"] = Term(mle_loss(policy_logps, 1), "truth tokens", options.sft_weight)
        return terms
