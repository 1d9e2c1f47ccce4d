"""A local reward model as judge: the answer with the greater reward wins."""

import math
from collections.abc import Sequence
from typing import Any

from evaluation.judge import SAME, Comparison, Outcome
from negatives_gen.reward_model import RewardModel, reward_model_identity

OPTION = "--judge.reward_model"
NO_CODE = " A judge runs no code of a model."
# A text's reward differs in its last float32 digits between two batches: that is no preference.
ROUNDING = 1e-4


class RewardJudge:
    """Scores each answer by itself, so there are no orders and nothing to flip; costs nothing, keeps nothing.

    The model is loaded when there is something to judge.

    Args:
        model: directory or hub id of a sequence-classification model with one label.

    Raises:
        UserError: it cannot be reached or, in `judge`, not loaded.
    """

    def __init__(self, model: str):
        self.name = model
        self._identity = reward_model_identity(model, OPTION)
        self.model: RewardModel | None = None

    def identity(self) -> dict[str, Any]:
        return {"reward_model": self._identity["name"], "weights_sha256": self._identity["weights_sha256"]}

    def spent(self) -> dict[str, float | None]:
        return dict.fromkeys(("requests", "reused", "input_tokens", "output_tokens", "cost", "unparsed"), 0)

    def judge(self, comparisons: Sequence[Comparison]) -> list[Outcome]:
        different = [c for c in comparisons if c.answer.strip() != c.other.strip()]
        if not different:
            return [SAME] * len(comparisons)
        self.model = model = self.model or RewardModel(self.name, OPTION, custom_code=NO_CODE)
        pairs = {c: (model.written(c.prompt, c.answer), model.written(c.prompt, c.other)) for c in different}
        unique = list(dict.fromkeys(text for pair in pairs.values() for text in pair))
        rewards = dict(zip(unique, model.rewards(unique), strict=True))
        return [_outcome(*(rewards[text] for text in pairs[c])) if c in pairs else SAME for c in comparisons]


def _outcome(answer: float, other: float) -> Outcome:
    if not (math.isfinite(answer) and math.isfinite(other)):
        return Outcome(None, reason=f"the rewards {answer} and {other} are no numbers to compare")
    if abs(answer - other) <= ROUNDING:
        return Outcome(0.5, reason="the rewards are the same")
    return Outcome(float(answer > other))
