"""CPO, best of K: the ground truth against all negatives at once (arXiv 2502.16433, eq. 1)."""

from typing import TYPE_CHECKING, Any

from trainer.objectives.base import Expected
from trainer.objectives.contrast import Contrast

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.groups.dataset import PackedGroups


class CPO(Contrast):
    """The K-way contrast -log softmax(h)_1, by `trainer.objectives.losses.cpo_loss`."""

    name = "cpo"
    summary = "Contrastive Preference Optimization, best of K (arXiv 2502.16433, eq. 1)"

    def contrast(self, policy_logps: "Tensor", groups: "PackedGroups", beta: float) -> "Tensor":
        from trainer.objectives.losses import cpo_loss

        return cpo_loss(policy_logps, groups.reference_logps, beta=beta, mask=groups.tokens.mask)

    def expected_at_start(self, groups: "PackedGroups", options: Any) -> Expected:
        return Expected("contrast", "log K", groups.tokens.mask.sum(-1).float().log())


OBJECTIVE = CPO()
