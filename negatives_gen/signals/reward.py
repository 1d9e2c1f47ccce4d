"""`reward`: a reward model's score of each candidate, relative to that of the ground truth."""

from collections.abc import Sequence
from typing import Any

from data.errors import UserError
from data.identity import model_directory, weights_hash
from data.schema import Group
from negatives_gen.loading import loading
from negatives_gen.signals.base import Signal, SignalOptions

BATCH_SIZE = {"cpu": 8, "cuda": 64}


class Reward(Signal):
    """reward(candidate) - reward(ground truth): 0 is as good as the ground truth, above 0 the model likes it better.

    The model sees the prompt and the answer as its chat template writes them, or, without one, one after the other;
    what is too long loses its beginning.
    """

    name = "reward"

    def __init__(self, options: SignalOptions):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        assert options.reward_model is not None  # StrategyOptions.signal_names
        directory = str(model_directory(options.reward_model))
        code = {"trust_remote_code": options.trust_remote_code}
        with loading(f"--reward_model '{options.reward_model}'"):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(directory, truncation_side="left", **code)
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                directory, dtype=torch.float32, use_safetensors=True, **code
            )
        if model.config.num_labels != 1:
            raise UserError(
                f"--reward_model '{options.reward_model}' has {model.config.num_labels} labels; a reward model has one."
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.longest = min(self.tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 1 << 20))

    @classmethod
    def identity(cls, options: SignalOptions) -> dict[str, Any]:
        assert options.reward_model is not None  # as above
        try:
            weights = weights_hash(str(model_directory(options.reward_model)))
        except UserError as error:
            raise UserError(f"--reward_model '{options.reward_model}' cannot be used: {error}") from error
        return {"name": options.reward_model, "weights_sha256": weights}

    def add(self, groups: Sequence[Group]) -> None:
        lacking = [(g, [c for c in g.negatives if self.name not in c.similarity]) for g in groups]
        asked = [(g, [g.response, *(c.text for c in some)]) for g, some in lacking if some]
        unique = list(dict.fromkeys(self._written(group, text) for group, texts in asked for text in texts))
        rewards = dict(zip(unique, self._rewards(unique), strict=True))
        for group, candidates in lacking:
            for candidate in candidates:
                truth = rewards[self._written(group, group.response)]
                candidate.similarity[self.name] = rewards[self._written(group, candidate.text)] - truth

    def _rewards(self, texts: Sequence[str]) -> list[float]:
        """The model's score of each text."""
        import torch

        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rewards = [0.0] * len(texts)
        size = BATCH_SIZE.get(self.model.device.type, BATCH_SIZE["cuda"])
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            tokens = self.tokenizer(
                [texts[i] for i in batch],
                add_special_tokens=not self.tokenizer.chat_template,  # the template wrote them
                padding=True,
                truncation=True,
                max_length=self.longest,
                return_tensors="pt",
            ).to(self.model.device)
            with torch.no_grad():
                logits = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits
            for i, value in zip(batch, logits[:, 0].tolist(), strict=True):
                rewards[i] = value
        return rewards

    def _written(self, group: Group, answer: str) -> str:
        if not self.tokenizer.chat_template:
            return group.prompt + answer
        # A chat's prompt was written by the reference model's template; this model has its own.
        asked = group.messages or [{"role": "user", "content": group.prompt}]
        return self.tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": answer}], tokenize=False)


SIGNAL = Reward
