"""`bertscore`: BERTScore F1 (Zhang et al., 2020) by its authors' library: tokens matched by their embeddings."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data.command.errors import UserError
from data.command.options import option
from data.model_settings import check_tokenizer_fits, text_model_identity
from data.models import context_length, model_directory
from data.schema import Group
from data.whole_weights import whole_weights
from negatives_gen.models.batches import give_pad_token
from negatives_gen.models.cut_texts import CutTexts, uncut
from negatives_gen.models.loading import loading
from negatives_gen.signals.base import Reference, Signal, library_identity

NO_CODE = " bert-score runs no code of a model: give an encoder that transformers knows."
BATCH_SIZE = {"cpu": 8, "cuda": 64}


@dataclass(frozen=True)
class Options:
    """The encoder whose embeddings are matched."""

    bertscore_model: str | None = option(None, "an encoder, directory or hub id", is_name=True, metavar="PATH")

    def check(self) -> None:
        """Raise UserError without --bertscore_model."""
        if not self.bertscore_model:
            raise UserError("ranking signal 'bertscore' needs --bertscore_model: a directory or a hub id.")


class BertScore(Signal):
    """Embeddings are the encoder's last hidden states; no idf weights, no baseline. 0 for a text without a token."""

    name = "bertscore"
    summary = "F1 of BERTScore: greedy matches of an encoder's token embeddings"
    Options: ClassVar = Options

    def __init__(self, options: Any, reference: Reference):
        import torch
        from bert_score import BERTScorer
        from transformers import AutoConfig

        assert options.bertscore_model is not None  # see `Options.check`
        directory = str(model_directory(options.bertscore_model))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        named = f"--bertscore_model '{options.bertscore_model}'"
        with loading(named, NO_CODE), whole_weights(named):
            self.scorer: Any = BERTScorer(
                model_type=directory,
                # Told not to, transformers refuses; not told, it asks on the terminal.
                num_layers=AutoConfig.from_pretrained(directory, trust_remote_code=False).num_hidden_layers,
                batch_size=BATCH_SIZE[device],
                device=device,
            )
        self.scorer._model.float()
        # bert-score cuts a text where the tokenizer says; some say a number beyond the model's positions.
        self.tokenizer = self.scorer._tokenizer
        give_pad_token(self.tokenizer)  # bert-score pads on the right, and needs one
        longest = context_length(directory, sys.maxsize)  # one that does not say has no limit
        self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, longest)
        self._cut = CutTexts(named, self.tokenizer.model_max_length)

    @classmethod
    def identity(cls, options: Any, reference: Reference) -> dict[str, Any]:
        assert options.bertscore_model is not None  # see `Options.check`
        try:
            check_tokenizer_fits(options.bertscore_model)
            identity = text_model_identity(options.bertscore_model)
        except UserError as error:
            raise UserError(f"--bertscore_model '{options.bertscore_model}' cannot be used: {error}") from error
        return {**identity, **library_identity(cls.name, "bert-score")}

    def add(self, groups: Sequence[Group]) -> None:
        pairs = [(c, g.response) for g in groups for c in g.negatives if self.name not in c.similarity]
        unique = list(dict.fromkeys((c.text, truth) for c, truth in pairs))
        usable = [pair for pair in unique if all(map(self._has_tokens, pair))]
        self._cut.look([text for pair in usable for text in pair], self._tokens)
        values = dict.fromkeys(unique, 0.0)
        values.update(zip(usable, self.in_parts(self._f1, usable, self.scorer.batch_size), strict=True))
        for candidate, truth in pairs:
            candidate.similarity[self.name] = values[candidate.text, truth]

    def _f1(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        texts, truths = zip(*pairs, strict=True)
        _, _, f1 = self.scorer.score(list(texts), list(truths), batch_size=self.scorer.batch_size)
        return f1.tolist()

    def _tokens(self, text: str) -> int:
        return uncut(self.tokenizer, text)

    def _has_tokens(self, text: str) -> bool:
        return bool(text.strip()) and bool(self.tokenizer(text, add_special_tokens=False)["input_ids"])


SIGNAL = BertScore
