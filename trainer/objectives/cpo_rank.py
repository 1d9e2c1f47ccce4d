"""CPO with ranking: Plackett-Luce over the candidates in their order of similarity (arXiv 2502.16433, eq. 2)."""

from typing import TYPE_CHECKING, Any

from trainer.objectives.base import Expected
from trainer.objectives.contrast import Contrast

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.groups.dataset import PackedGroups
    from trainer.objectives.rewards import Beta


class CPORank(Contrast):
    """Plackett-Luce likelihood of the candidates' order, by `trainer.objectives.losses.cpo_ranking_loss`."""

    name = "cpo-rank"
    summary = "CPO with ranking, Plackett-Luce over the similarity order (eq. 2)"

    def contrast(self, policy_logps: "Tensor", groups: "PackedGroups", beta: "Beta") -> "Tensor":
        from trainer.objectives.losses import cpo_ranking_loss

        reference, mask = groups.reference_logps, groups.tokens.mask
        return cpo_ranking_loss(policy_logps, reference, groups.ranks, beta=beta, mask=mask)

    def expected_at_start(self, groups: "PackedGroups", options: Any) -> Expected:
        return Expected("contrast", "log K!", (groups.tokens.mask.sum(-1).float() + 1).lgamma())


OBJECTIVE = CPORank()
