"""What the dry run (`trainer.sizing`) predicts of a step that is measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from data.command.errors import first_line
from tests.gpu.parts.inputs import make_model
from trainer.groups.dataset import PackedGroups
from trainer.policy import Policy
from trainer.sizing.devices import device_of
from trainer.sizing.predicted import Case, predict


class RandomPolicy(Policy):
    """Random weights: `directory` is one of `inputs.SHAPES`, `config` a torch dtype, so that TRL need not be here."""

    @property
    def adapter(self) -> Any:
        return None

    def load(self) -> Any:
        """The model where torch makes new tensors."""
        return make_model(str(self.directory), None, self.config)  # type: ignore[arg-type]


def predicted_peak(
    size: str,
    dtype: Any,
    training: TrainingArguments,
    objective: Any,
    options: Any,
    layout: str,
    passes: Sequence[PackedGroups],
) -> tuple[int | None, str]:
    """Bytes at the peak of a step of these passes on this machine's device, or None and why there is no prediction."""
    try:
        policy = RandomPolicy(Path(size), dtype, from_scratch=True, dropout=False)
        case = Case(policy, training, objective, options, device_of(None))
        largest = max(passes, key=lambda packed: packed.tokens.input_ids.numel())
        return predict(case, layout, largest, accumulates=len(passes) > 1).peak, ""
    except Exception as error:  # what was measured is kept whatever fails here
        return None, f"failed: {first_line(error)[:100]}"
