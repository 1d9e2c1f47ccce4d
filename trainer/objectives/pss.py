"""PSS: the paper's baseline of parallel scheduled sampling (arXiv 1906.04331), see `trainer.objectives.scheduled`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.command.errors import UserError
from data.command.options import option
from data.command.values import require_positive
from trainer.objectives.base import Objective, Term

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.groups.dataset import PackedGroups
    from trainer.scoring.prepared_model import PreparedModel


@dataclass(frozen=True)
class PSSOptions:
    """How mixtures of gold and sampled tokens are made."""

    pss_share: float = option(0.25, "probability that a sampled token takes a gold token's place in the input")
    pss_passes: int = option(1, "sampling passes")
    pss_mixtures: int = option(3, "mixtures per example (the paper's 3)")

    def check(self) -> None:
        """Raise UserError for a value out of its range."""
        if not 0 <= self.pss_share <= 1:
            raise UserError(f"--pss_share must be from 0 to 1, got {self.pss_share}.")
        require_positive(self, "pss_passes", "pss_mixtures")


class PSS(Objective):
    """Negative log-likelihood per token of the ground truths given mixtures of gold and sampled tokens.

    The loss is `trainer.objectives.losses.pss_loss`. On held-out groups, whose inputs are gold, it is MLE's.
    """

    name = "pss"
    summary = "the baseline, next-token prediction by parallel scheduled sampling (arXiv 1906.04331)"
    Options = PSSOptions
    needs = "truths"
    dropout = True

    def terms(self, policy_logps: "Tensor", groups: "PackedGroups", options: PSSOptions) -> Mapping[str, Term]:
        from trainer.objectives.losses import pss_loss

        return {"nll": Term(pss_loss(policy_logps, 1), "truth tokens")}

    def copies(self, options: PSSOptions) -> int:
        return options.pss_mixtures

    def mix(
        self, policy: "PreparedModel", groups: "PackedGroups", options: PSSOptions, seed: tuple[int, int]
    ) -> "PackedGroups":
        from trainer.objectives.scheduled import ScheduledSampling

        return ScheduledSampling(options.pss_share, options.pss_passes).mix(policy, groups, seed)


OBJECTIVE = PSS()
