"""CPO, best of K: the ground truth against all negatives at once (arXiv 2502.16433, eq. 1)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.objectives.base import Expected
from trainer.objectives.contrast import Contrast

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.groups.dataset import PackedGroups
    from trainer.objectives.rewards import Beta


class CPO(Contrast):
    """The K-way contrast -log softmax(h)_1, by `trainer.objectives.losses.cpo_loss`."""

    name = "cpo"
    summary = "Contrastive Preference Optimization, best of K (arXiv 2502.16433, eq. 1)"
    done_when_decided = True
    learns_order = False

    def contrast(self, policy_logps: "Tensor", groups: "PackedGroups", beta: "Beta") -> "Tensor":
        from trainer.objectives.losses import cpo_loss

        return cpo_loss(policy_logps, groups.reference_logps, beta=beta, mask=groups.tokens.mask)

    def metrics(self, policy_logps: "Tensor", groups: "PackedGroups", options: Any) -> Mapping[str, "Tensor"]:
        from trainer.objectives.rewards import kl_bound

        scale, mask = self.scale(groups, options), groups.tokens.mask
        bound = kl_bound(policy_logps, groups.reference_logps, beta=scale, mask=mask)
        return {**super().metrics(policy_logps, groups, options), "contrast/kl_bound": bound}

    def expected_at_start(self, groups: "PackedGroups", options: Any) -> Expected:
        return Expected("contrast", "log K", groups.tokens.mask.sum(-1).float().log())


OBJECTIVE = CPO()
