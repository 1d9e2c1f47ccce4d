"""NCA, absolute rewards: each candidate against a fixed threshold instead of against the others (arXiv 2402.05369)."""

import math
from typing import TYPE_CHECKING, Any

from trainer.objectives.base import Expected
from trainer.objectives.contrast import Contrast

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.groups.dataset import PackedGroups
    from trainer.objectives.rewards import Beta


class NCA(Contrast):
    """Noise contrastive alignment for one ground truth and its negatives, by `trainer.objectives.losses.nca_loss`."""

    name = "nca"
    summary = "absolute rewards: h of the ground truth above 0, of each negative below (NCA, arXiv 2402.05369)"
    learns_order = False

    def contrast(self, policy_logps: "Tensor", groups: "PackedGroups", beta: "Beta") -> "Tensor":
        from trainer.objectives.losses import nca_loss

        return nca_loss(policy_logps, groups.reference_logps, beta=beta, mask=groups.tokens.mask)

    def expected_at_start(self, groups: "PackedGroups", options: Any) -> Expected:
        has_negatives = groups.tokens.mask[:, 1:].any(-1)
        return Expected("contrast", "2 log 2", (1 + has_negatives.float()) * math.log(2))


OBJECTIVE = NCA()
