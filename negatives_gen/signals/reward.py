"""`reward`: a reward model's score of each candidate, relative to that of the ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data.command.errors import UserError
from data.command.options import option
from data.schema import Group, as_messages
from negatives_gen.models.reward_model import RewardModel, check_template, reward_model_identity
from negatives_gen.signals.base import Reference, Signal


@dataclass(frozen=True)
class Options:
    """The model that gives the rewards."""

    reward_model: str | None = option(
        None, "a sequence-classification model, directory or hub id", is_name=True, metavar="PATH"
    )

    def check(self) -> None:
        """Raise UserError without --reward_model."""
        if not self.reward_model:
            raise UserError("ranking signal 'reward' needs --reward_model: a directory or a hub id.")


class Reward(Signal):
    """reward(candidate) - reward(ground truth): 0 is as good as the ground truth, above 0 the model likes it better.

    A model with a chat template sees the messages of a chat, or what a person asked as one; another one sees the prompt
    that the reference model continues, and the candidate behind it.
    """

    name = "reward"
    summary = "score of a reward model"
    Options: ClassVar = Options

    def __init__(self, options: Any, reference: Reference):
        assert options.reward_model is not None  # see `Options.check`
        self.model = RewardModel(options.reward_model, trust_remote_code=reference.trust_remote_code)

    @classmethod
    def identity(cls, options: Any, reference: Reference) -> dict[str, Any]:
        assert options.reward_model is not None  # see `Options.check`
        return reward_model_identity(options.reward_model)

    @classmethod
    def look_at(cls, options: Any, prompts: Sequence[list[dict[str, str]]]) -> None:
        check_template(options.reward_model, "--reward_model", prompts)

    def add(self, groups: Sequence[Group]) -> None:
        lacking = [(g, [c for c in g.negatives if self.name not in c.similarity]) for g in groups]
        asked = [(g, [g.response, *(c.text for c in some)]) for g, some in lacking if some]
        unique = list(dict.fromkeys(self._written(group, text) for group, texts in asked for text in texts))
        rewards = dict(zip(unique, self.in_parts(self.model.rewards, unique, self.model.size), strict=True))
        for group, candidates in lacking:
            for candidate in candidates:
                truth = rewards[self._written(group, group.response)]
                candidate.similarity[self.name] = rewards[self._written(group, candidate.text)] - truth

    def _written(self, group: Group, answer: str) -> str:
        return self.model.written(group.prompt, answer, as_messages(group.messages, group.query))


SIGNAL = Reward
