"""A reward model: a sequence-classification model with one label, which scores an answer to a prompt."""

from collections.abc import Sequence
from typing import Any

from data.command.errors import UserError
from data.models import model_directory, weights_hash
from negatives_gen.models.loading import TRUST, loading

BATCH_SIZE = {"cpu": 8, "cuda": 64}


def reward_model_identity(model: str, option: str = "--reward_model") -> dict[str, str]:
    """Hash of the weights. Raises UserError, which names the option, if the model cannot be reached."""
    try:
        return {"weights_sha256": weights_hash(str(model_directory(model)))}
    except UserError as error:
        raise UserError(f"{option} '{model}' cannot be used: {error}") from error


class RewardModel:
    """Sees prompt and answer as its chat template writes them, or, without one, one after the other.

    What is too long loses its beginning.

    Args:
        model: directory or hub id.
        option: by which the user named it, for errors.
        trust_remote_code: run Python code that comes with the model.
        custom_code: what to say if the model comes with code that was not to be run.

    Raises:
        UserError: the reward model cannot be loaded, or has more labels than one.
    """

    def __init__(
        self, model: str, option: str = "--reward_model", trust_remote_code: bool = False, custom_code: str = TRUST
    ):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        directory = str(model_directory(model))
        code = {"trust_remote_code": trust_remote_code}
        with loading(f"{option} '{model}'", custom_code):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(directory, truncation_side="left", **code)
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                directory, dtype=torch.float32, use_safetensors=True, **code
            )
        if loaded.config.num_labels != 1:
            raise UserError(f"{option} '{model}' has {loaded.config.num_labels} labels; a reward model has one.")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        loaded.config.pad_token_id = self.tokenizer.pad_token_id
        self.model = loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.longest = min(self.tokenizer.model_max_length, getattr(loaded.config, "max_position_embeddings", 1 << 20))

    def written(self, prompt: str, answer: str, messages: Sequence[dict[str, str]]) -> str:
        """The text that is scored.

        Args:
            prompt: what a model without a chat template sees before the answer.
            messages: what one with a chat template sees instead: a prompt may hold another model's template.
        """
        if not self.tokenizer.chat_template:
            return prompt + answer
        return self.tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)

    def rewards(self, texts: Sequence[str]) -> list[float]:
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
