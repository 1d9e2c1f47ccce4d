"""Texts as vectors, for measures of distributions: from an embedding model or a causal language model."""

import hashlib
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.architectures import classes, continues_texts
from data.command.errors import UserError
from data.model_settings import MODULES, text_model_identity
from data.models import check_model, context_length, load_tokenizer, read_object
from data.whole_weights import load_whole
from evaluation.answers.cache import Store
from evaluation.answers.weights import identify_text_model
from evaluation.on_demand import OnDemand
from negatives_gen.models.cut_texts import CutTexts

SENTENCES, LANGUAGE_MODEL = "sentence-transformers", "causal-lm"


class Featuriser:
    """What turns texts into vectors: a sentence-transformers model's embedding, or, as in MAUVE's paper (GPT-2 large
    there), a causal language model's last hidden state at the last token. Loaded when it is first used.

    Args:
        name: local directory or hub id; one with a modules.json is taken as a sentence-transformers model.
        store: remembers the hash of its weights.

    Raises:
        UserError: the path holds a model of neither kind, or an incomplete one.
    """

    def __init__(self, name: str, store: Store | None = None):
        self.name, self.store = name, store
        self.directory: Path = check_model(name)
        config = read_object(self.directory / "config.json")
        if (self.directory / MODULES).is_file():
            self.kind = SENTENCES
        elif continues_texts(config):
            self.kind = LANGUAGE_MODEL
        else:
            raise UserError(
                f"featuriser '{name}' is neither a sentence-transformers model (it has no modules.json) nor a causal "
                f"language model (its config.json names {', '.join(classes(config)) or 'no architecture'})."
            )
        self._embedder = OnDemand(self._load_embedder)
        self._language_model = OnDemand(self._load_language_model)

    def drop(self) -> None:
        """Free what the featuriser's model takes."""
        self._embedder.drop()
        self._language_model.drop()

    def identity(self) -> dict[str, str]:
        """What decides the features: kind, weights, and the settings beside them (pooling, lengths, tokenizer)."""
        return {"kind": self.kind, **self._hashes}

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """[len(texts), D], float32. Raises UserError if the model cannot be loaded or gives nan."""
        vectors = self._embedder().embed(texts) if self.kind == SENTENCES else self._last_states(texts)
        if not np.isfinite(vectors).all():
            raise UserError(f"featuriser '{self.name}' gives features that are no numbers (nan). Choose another.")
        return vectors

    @cached_property
    def _longest(self) -> int:
        return context_length(str(self.directory), sys.maxsize)  # one that does not say has no limit

    @cached_property
    def _cut(self) -> CutTexts:
        return CutTexts(f"featuriser '{self.name}'", self._longest)

    @cached_property
    def _hashes(self) -> dict[str, str]:
        if self.store is None:
            return text_model_identity(str(self.directory))
        return identify_text_model(str(self.directory), self.store)

    def _load_embedder(self) -> Any:
        from negatives_gen.models.embedder import Embedder
        from negatives_gen.models.loading import NO_CODE

        embedder = Embedder(str(self.directory), "", custom_code=NO_CODE)
        embedder.model.tokenizer.truncation_side = "left"
        return embedder

    def _load_language_model(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        from negatives_gen.models.loading import NO_CODE, loading

        with loading(f"featuriser '{self.name}'", NO_CODE):
            model = load_whole(AutoModelForCausalLM, self.directory, self.name, dtype=torch.float32)
        return model.base_model.to("cuda" if torch.cuda.is_available() else "cpu")

    def _last_states(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        model, tokenizer = self._language_model(), load_tokenizer(str(self.directory))
        encoded = tokenizer(list(texts), verbose=False)["input_ids"]
        self._cut.look(texts, dict(zip(texts, map(len, encoded), strict=True)).__getitem__, "end")
        rows = [torch.tensor(ids[-self._longest :] or [tokenizer.eos_token_id]) for ids in encoded]
        batch_size = 64 if model.device.type == "cuda" else 8
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        vectors: list[np.ndarray] = [np.empty(0)] * len(rows)
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            ids = torch.nn.utils.rnn.pad_sequence([rows[i] for i in chosen], batch_first=True).to(model.device)
            ends = torch.tensor([len(rows[i]) - 1 for i in chosen], device=model.device)
            mask = (torch.arange(ids.shape[1], device=model.device) <= ends[:, None]).long()
            with torch.no_grad():
                states = model(ids, attention_mask=mask, use_cache=False).last_hidden_state
            last = states[torch.arange(len(chosen), device=model.device), ends].float().cpu().numpy()
            for i, vector in zip(chosen, last, strict=True):
                vectors[i] = vector
        return np.stack(vectors)


def stored_features(store: Store, featuriser: Featuriser, texts: Sequence[str]) -> np.ndarray:
    """[len(texts), D], float32: a featuriser's features of texts, kept in the store."""

    def make() -> pa.Table:
        vectors = featuriser.features(texts)
        return pa.table({"features": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])})

    table = store.get_or_make("features", {**featuriser.identity(), "texts_sha256": hash_of_texts(texts)}, make)
    return table["features"].combine_chunks().flatten().to_numpy().reshape(len(texts), -1)


def hash_of_texts(texts: Sequence[str]) -> str:
    """SHA-256 of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()
