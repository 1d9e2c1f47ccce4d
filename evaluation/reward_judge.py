"""A local reward model as judge: the answer with the greater reward wins."""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from data.identity import chat_template_hash, load_tokenizer, tokenizer_hash
from evaluation.judge import SAME, Comparison, Outcome
from evaluation.store import Store, hash_of
from negatives_gen.reward_model import RewardModel, reward_model_identity

OPTION = "--judge.reward_model"
NO_CODE = " A judge runs no code of a model."
# A text's reward differs in its last float32 digits between two batches: that is no preference.
ROUNDING = 1e-4


class RewardJudge:
    """Scores each answer by itself, so there are no orders and nothing to flip.

    The model is loaded when there is something to judge.

    Args:
        model: directory or hub id of a sequence-classification model with one label.
        store: keeps the rewards.

    Raises:
        UserError: it cannot be reached or, in `judge`, not loaded.
    """

    def __init__(self, model: str, store: Store):
        self.name, self.store = model, store
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
        asked = list(dict.fromkeys((c.prompt, text) for c in different for text in (c.answer, c.other)))
        tokenizer = load_tokenizer(self.name)
        key = {
            "weights_sha256": self._identity["weights_sha256"],
            "tokenizer_sha256": tokenizer_hash(tokenizer),
            "chat_template_sha256": chat_template_hash(tokenizer),
            "asked_sha256": hash_of({"asked": asked}),
        }
        table = self.store.get_or_make("rewards", key, lambda: pa.table({"reward": self._rewards(asked)}))
        rewards = dict(zip(asked, table["reward"].to_pylist(), strict=True))
        outcomes = {c: _outcome(rewards[c.prompt, c.answer], rewards[c.prompt, c.other]) for c in different}
        return [outcomes.get(c, SAME) for c in comparisons]

    def _rewards(self, asked: Sequence[tuple[str, str]]) -> list[float]:
        """Of prompts with an answer each."""
        self.model = model = self.model or RewardModel(self.name, OPTION, custom_code=NO_CODE)
        written = [model.written(prompt, answer) for prompt, answer in asked]
        unique = list(dict.fromkeys(written))
        rewards = dict(zip(unique, model.rewards(unique), strict=True))
        return [rewards[text] for text in written]


def _outcome(answer: float, other: float) -> Outcome:
    if not (math.isfinite(answer) and math.isfinite(other)):
        return Outcome(None, reason=f"the rewards {answer} and {other} are no numbers to compare")
    if abs(answer - other) <= ROUNDING:
        return Outcome(0.5, reason="the rewards are the same")
    return Outcome(float(answer > other))
