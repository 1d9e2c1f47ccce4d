"""`reward`: a reward model's score of each candidate, relative to that of the ground truth."""

from collections.abc import Sequence
from typing import Any

from data.schema import Group
from negatives_gen.models.reward_model import RewardModel, reward_model_identity
from negatives_gen.signals.base import Signal, SignalOptions


class Reward(Signal):
    """reward(candidate) - reward(ground truth): 0 is as good as the ground truth, above 0 the model likes it better."""

    name = "reward"

    def __init__(self, options: SignalOptions):
        assert options.reward_model is not None  # StrategyOptions.signal_names
        self.model = RewardModel(options.reward_model, trust_remote_code=options.trust_remote_code)

    @classmethod
    def identity(cls, options: SignalOptions) -> dict[str, Any]:
        assert options.reward_model is not None  # as above
        return reward_model_identity(options.reward_model)

    def add(self, groups: Sequence[Group]) -> None:
        lacking = [(g, [c for c in g.negatives if self.name not in c.similarity]) for g in groups]
        asked = [(g, [g.response, *(c.text for c in some)]) for g, some in lacking if some]
        unique = list(dict.fromkeys(self._written(group, text) for group, texts in asked for text in texts))
        rewards = dict(zip(unique, self.model.rewards(unique), strict=True))
        for group, candidates in lacking:
            for candidate in candidates:
                truth = rewards[self._written(group, group.response)]
                candidate.similarity[self.name] = rewards[self._written(group, candidate.text)] - truth

    def _written(self, group: Group, answer: str) -> str:
        return self.model.written(group.prompt, answer, group.messages)


SIGNAL = Reward
