"""MLE: next-token prediction on the ground truths (paper eq. 1). It makes the reference model, and is a baseline."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.objectives.base import Objective, Term

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.groups.dataset import PackedGroups


class MLE(Objective):
    """Negative log-likelihood per token of the ground truths, by `trainer.objectives.losses.mle_loss`."""

    name = "mle"
    summary = "next-token prediction on the ground truths"
    needs = "truths"
    dropout = True
    from_scratch = True

    def terms(self, policy_logps: "Tensor", groups: "PackedGroups", options: Any) -> Mapping[str, Term]:
        from trainer.objectives.losses import mle_loss

        return {"nll": Term(mle_loss(policy_logps, 1), "truth tokens")}


OBJECTIVE = MLE()
