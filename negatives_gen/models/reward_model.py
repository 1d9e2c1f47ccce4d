"""A reward model: a sequence-classification model with one label, which scores an answer to a prompt."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from data.command.deadline import within
from data.command.errors import UserError, first_line
from data.model_settings import check_tokenizer_fits, text_model_identity
from data.models import context_length, model_directory
from data.sources.encode import left_out
from data.tokens import LONGEST_RENDERING
from data.whole_weights import load_whole
from negatives_gen.models.batches import batches, minds_padding, pad_right
from negatives_gen.models.cut_texts import CutTexts, uncut
from negatives_gen.models.loading import TRUST, loading

log = logging.getLogger(__name__)

BATCH_SIZE = {"cpu": 8, "cuda": 64}


def reward_model_identity(model: str, option: str = "--reward_model") -> dict[str, str]:
    """What decides a reward model's rewards. Raises UserError, which names the option, if the model cannot be used."""
    try:
        check_tokenizer_fits(model)
        identity = text_model_identity(model)
    except UserError as error:
        raise UserError(f"{option} '{model}' cannot be used: {error}") from error
    require_one_label(model, option)
    return identity


def require_one_label(model: str, option: str) -> None:
    """Raise UserError if a model's config.json has other than one label; what is code says so when it is loaded."""
    from transformers import AutoConfig

    try:
        labels = AutoConfig.from_pretrained(model_directory(model)).num_labels
    except Exception:  # no class of transformers': it is refused, or its code run, when it is loaded
        return
    if labels != 1:
        raise _labels_error(model, option, labels)


def check_template(model: str, option: str, chats: Sequence[Sequence[dict[str, str]]]) -> None:
    """Have a reward model's chat template write some prompts before any work; nothing is checked of one without.

    What it leaves out, such as a system turn, is said in a warning.

    Args:
        chats: prompts, each as messages.

    Raises:
        UserError: the template refuses one of them, or does not end.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model_directory(model))
    except Exception:  # one that is code
        return
    if not tokenizer.chat_template:
        return
    said = False
    for chat in chats:
        messages = [*chat, {"role": "assistant", "content": "a"}]
        with within(LONGEST_RENDERING, f"the chat template of {option} '{model}'"):
            found = left_out(tokenizer, messages, _templated(tokenizer, messages, f"{option} '{model}'"))
        if found and not said:
            log.warning("%s '%s': its %s, so that rewards do not depend on it", option, model, " (".join(found) + ")")
            said = True


def _templated(tokenizer: Any, messages: list[dict[str, str]], what: str) -> str:
    """What a chat template writes. Raises UserError if it refuses the messages; templates are programs."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"the chat template of {what} refuses messages of {roles} ({first_line(error).rstrip('.')}). Use another "
            "reward model, or leave these rows out."
        ) from error


def _labels_error(model: str, option: str, labels: int | None) -> UserError:
    return UserError(f"{option} '{model}' has {labels} labels; a reward model has one.")


class RewardModel:
    """Rewards of answers to prompts, which it is shown by its chat template, or, without one, one after the other.

    What is too long loses its beginning. A text's reward is the same whatever texts it is scored with.

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

        self.what = f"{option} '{model}'"
        directory = str(model_directory(model))
        code = {"trust_remote_code": trust_remote_code}
        with loading(f"{option} '{model}'", custom_code):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(directory, truncation_side="left", **code)
            loaded: Any = load_whole(AutoModelForSequenceClassification, directory, model, dtype=torch.float32, **code)
        if loaded.config.num_labels != 1:
            raise _labels_error(model, option, loaded.config.num_labels)
        declared = (self.tokenizer.pad_token_id, loaded.config.get_text_config().pad_token_id)
        self.pad: int | None = next((pad for pad in declared if pad is not None), None)
        self.model = loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.longest = min(self.tokenizer.model_max_length, context_length(str(directory), sys.maxsize))
        self._cut = CutTexts(self.what, self.longest)
        self.size = BATCH_SIZE.get(self.model.device.type, BATCH_SIZE["cuda"])
        self.padded = True
        self.padded = not minds_padding(self._rewards)
        if not self.padded:
            log.warning(
                "%s '%s' gives padded texts other rewards: texts of one length are scored together.", option, model
            )

    def written(self, prompt: str, answer: str, messages: Sequence[dict[str, str]]) -> str:
        """The text that is scored.

        Args:
            prompt: what a model without a chat template sees before the answer.
            messages: what one with a chat template sees instead: a prompt may hold another model's template.

        Raises:
            UserError: the template refuses the messages.
        """
        if not self.tokenizer.chat_template:
            return prompt + answer
        return _templated(self.tokenizer, [*messages, {"role": "assistant", "content": answer}], self.what)

    def rewards(self, texts: Sequence[str]) -> list[float]:
        """The model's score of each text."""
        self._cut.look(texts, self._tokens, "end")
        return self._rewards(texts)

    def _tokens(self, text: str) -> int:
        return uncut(self.tokenizer, text, add_special_tokens=not self.tokenizer.chat_template)

    def _rewards(self, texts: Sequence[str]) -> list[float]:
        rows = [
            self.tokenizer(
                text,
                add_special_tokens=not self.tokenizer.chat_template,  # the template wrote them
                truncation=True,
                max_length=self.longest,
            )["input_ids"]
            for text in texts
        ]
        rows = [row or [self.pad or 0] for row in rows]
        rewards = [0.0] * len(rows)
        for batch in batches([len(row) for row in rows], self.size, padded=self.padded):
            for i, value in zip(batch, self._of_batch([rows[i] for i in batch]), strict=True):
                rewards[i] = value
        return rewards

    def _of_batch(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Rewards of some rows of ids."""
        import torch

        # The model reads its score at the last token that is not the pad token. Where it has none of its own, it gets
        # one that no row ends with, or an EOS at a text's end would be taken for padding.
        lasts = {row[-1] for row in rows}
        pad = self.pad if self.pad is not None else next(i for i in range(len(lasts) + 1) if i not in lasts)
        for config in (self.model.config, self.model.config.get_text_config()):
            config.pad_token_id = pad
        ids, mask = (part.to(self.model.device) for part in pad_right(rows, pad))
        with torch.no_grad():
            return self.model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
