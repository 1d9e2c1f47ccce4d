"""A local reward model as judge: the answer with the greater reward wins."""

import itertools
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from data.command.errors import UserError
from data.finite import LOOK, first_not_finite
from data.schema import as_messages
from evaluation.answers.cache import Store, hash_of
from evaluation.answers.weights import identify_text_model
from evaluation.judging.base import SAME, Asked, Comparison, Outcome
from evaluation.on_demand import OnDemand
from negatives_gen.models.reward_model import RewardModel, check_template, require_one_label

OPTION = "--judge.reward_model"
NO_CODE = " A judge runs no code of a model."
# A text's reward differs in its last float32 digits between two batches: that is no preference.
ROUNDING = 1e-4

# What `RewardModel.written` takes: a prompt, an answer, and the prompt as messages for a chat template.
Text = tuple[str, str, list[dict[str, str]]]


class RewardJudge:
    """Scores each answer by itself, so there are no orders and nothing to flip.

    A model with a chat template sees the messages of a chat, or what a person asked as one; another one sees the prompt
    that the compared models were given, and the answer behind it.

    Args:
        model: directory or hub id of a sequence-classification model with one label.
        store: keeps the rewards.

    Raises:
        UserError: the reward model cannot be reached or, in `judge`, not loaded; or a reward is not finite.
    """

    members: Sequence[str] = ()

    def __init__(self, model: str, store: Store):
        self.name, self.store = model, store
        try:
            identify_text_model(model, store)
        except UserError as error:
            raise UserError(f"{OPTION} '{model}' cannot be used: {error}") from error
        self.model = OnDemand(lambda: RewardModel(model, OPTION, custom_code=NO_CODE))

    def look_at(self, prompts: Sequence[Asked]) -> None:
        """Raise UserError for a model with other than one label, or prompts that its chat template refuses.

        What was found sound is remembered by the store, so that a finished evaluation needs no tokenizer.
        """
        chats = [as_messages(g.messages, g.query) for g in prompts]

        def look() -> pa.Table:
            require_one_label(self.name, OPTION)
            check_template(self.name, OPTION, chats)
            return pa.table({"taken": [True]})

        key = {**identify_text_model(self.name, self.store), "chats_sha256": hash_of({"chats": chats})}
        self.store.get_or_make("taken", key, look)

    def identity(self) -> dict[str, Any]:
        return {"reward_model": self.name, **identify_text_model(self.name, self.store)}

    def spent(self) -> dict[str, Any]:
        return {}

    def drop(self) -> None:
        self.model.drop()

    def judge(self, comparisons: Sequence[Comparison]) -> list[Outcome]:
        different = [c.answer.strip() != c.other.strip() for c in comparisons]
        if not any(different):
            return [SAME] * len(comparisons)
        asked = [
            (c.prompt or c.query, text, as_messages(c.messages, c.query))
            for c in itertools.compress(comparisons, different)
            for text in (c.answer, c.other)
        ]
        key = {**identify_text_model(self.name, self.store), "asked_sha256": hash_of({"asked": asked})}
        table = self.store.get_or_make("rewards", key, lambda: pa.table({"reward": self._rewards(asked)}))
        rewards = self._checked(table["reward"].to_pylist(), asked)
        outcomes = map(_outcome, rewards[::2], rewards[1::2])
        return [next(outcomes) if differ else SAME for differ in different]

    def _rewards(self, asked: Sequence[Text]) -> list[float]:
        model = self.model()
        written = [model.written(*one) for one in asked]
        unique = list(dict.fromkeys(written))
        rewards = dict(zip(unique, model.rewards(unique), strict=True))
        return self._checked([rewards[text] for text in written], asked)

    def _checked(self, rewards: list[float], asked: Sequence[Text]) -> list[float]:
        if (index := first_not_finite(rewards)) is not None:
            raise UserError(
                f"{OPTION} '{self.name}' gives the answer {asked[index][1][:80]!r} the reward {rewards[index]}, which "
                f"is no finite number. {LOOK}"
            )
        return rewards


def _outcome(answer: float, other: float) -> Outcome:
    if abs(answer - other) <= ROUNDING:
        return Outcome(0.5, reason="the rewards are the same")
    return Outcome(float(answer > other))
