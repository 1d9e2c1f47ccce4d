"""How likely the ground truths are under a checkpoint itself."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from evaluation.metrics.base import MODEL, CheckpointMetric, Column, Values

if TYPE_CHECKING:
    from evaluation.answers.checkpoints import Checkpoint

SUM, PER_TOKEN = "truth_logp", "truth_logp_per_token"
DTYPE = "float32"


class Truth(CheckpointMetric):
    """Log-probabilities of the ground truths in nats, per continuation and per token."""

    name = "truth"
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

    def values(self, checkpoint: "Checkpoint", scorer: Callable[[str], Any]) -> Values:
        from evaluation.metrics.logps import truth_logps

        groups = checkpoint.groups
        logps = truth_logps(self.evaluation.store, checkpoint.identity, groups, functools.partial(scorer, DTYPE))
        return {SUM: logps, PER_TOKEN: [logp / len(g.response_ids) for logp, g in zip(logps, groups, strict=True)]}


METRIC = Truth
