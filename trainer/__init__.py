"""Stage 2: trains on the shards of a negative set, with TRL and transformers.

For programs: `ContrastiveTrainer`, and the paper's two losses as functions of log-probabilities, `cpo_loss` and
`cpo_ranking_loss`.
"""

from typing import TYPE_CHECKING, Any

from cpo_rooms import require_ours

if TYPE_CHECKING:
    from trainer.objectives.losses import cpo_loss, cpo_ranking_loss
    from trainer.trainer import ContrastiveTrainer

require_ours("data")

__all__ = ["ContrastiveTrainer", "cpo_loss", "cpo_ranking_loss"]


def __getattr__(name: str) -> Any:
    """What this package exports is imported when it is asked for, so that `import trainer` loads nothing."""
    if name == "ContrastiveTrainer":
        from trainer.trainer import ContrastiveTrainer

        return ContrastiveTrainer
    if name in ("cpo_loss", "cpo_ranking_loss"):
        from trainer.objectives import losses

        return getattr(losses, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
