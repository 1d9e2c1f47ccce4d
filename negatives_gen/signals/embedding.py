"""`embedding`: cosine similarity of sentence embeddings, the paper's ranking signal (section 4.3)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.schema import Group
from negatives_gen.models.embedder import Embedder, embedder_identity
from negatives_gen.signals.base import Signal, SignalOptions


class Embedding(Signal):
    """Also sets each group's response_embedding."""

    name = "embedding"

    def __init__(self, options: SignalOptions):
        self.embedder = Embedder(options.embedder, options.model, options.trust_remote_code)

    @classmethod
    def identity(cls, options: SignalOptions) -> dict[str, Any]:
        return embedder_identity(options.embedder, options.model)

    def add(self, groups: Sequence[Group]) -> None:
        lacking = [(g, [c for c in g.negatives if self.name not in c.similarity]) for g in groups]
        texts = [g.response for g in groups if not g.response_embedding]
        texts += [c.text for _, candidates in lacking for c in candidates]
        unique = list(dict.fromkeys(texts))
        if not unique:
            return
        vector_of = dict(zip(unique, self.embedder.embed(unique), strict=True))
        for group, candidates in lacking:
            if not group.response_embedding:
                group.response_embedding = vector_of[group.response].tolist()
            truth = np.asarray(group.response_embedding, dtype=np.float32)
            for candidate in candidates:
                candidate.similarity[self.name] = float(vector_of[candidate.text] @ truth)


SIGNAL = Embedding
