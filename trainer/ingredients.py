"""Policy, data and settings of a trainer, which objectives with a trainer of their own are given too."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from trainer.policy import Policy


@dataclass
class TrainingData:
    """Data sets and what identifies them.

    Attributes:
        train: groups to train on.
        held_out: groups to watch, or None.
        source: checksums: a checkpoint may be resumed on the same data only.
        scored: in which (dtype, layout) the reference scored the groups; empty for ground truths alone.
        use, rank_by: as on the command line, with the sets' own names for entries from outside.
    """

    train: Any
    held_out: Any
    source: dict[str, Any]
    scored: list[tuple[str, str]]
    use: str | None = None
    rank_by: str | None = None


@dataclass(frozen=True)
class Setup:
    """What a trainer is made from.

    Attributes:
        policy: not loaded yet.
        data: what it is trained and watched on.
        training: transformers' arguments.
        tokenizer: saved beside the model.
        row_tokens: token budget of a forward pass.
        skip_below: see `trainer.skipping`; None: nothing is skipped.
    """

    policy: "Policy"
    data: TrainingData
    training: "TrainingArguments"
    tokenizer: Any
    row_tokens: int
    skip_below: float | None = None
