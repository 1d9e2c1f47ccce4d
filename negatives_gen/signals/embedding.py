"""`embedding`: cosine similarity of sentence embeddings, the paper's ranking signal (section 4.3)."""

from collections.abc import Sequence
from typing import Any

from data.schema import Group
from negatives_gen.embedder import Embedder, embedder_identity
from negatives_gen.signals.base import Signal, SignalOptions


class Embedding(Signal):
    """Also sets each group's response_embedding."""

    name = "embedding"

    def __init__(self, options: SignalOptions):
        self.embedder = Embedder(options.embedder, options.model)

    @classmethod
    def identity(cls, options: SignalOptions) -> dict[str, Any]:
        return embedder_identity(options.embedder, options.model)

    def add(self, groups: Sequence[Group]) -> None:
        lacking = [(g, [c for c in g.negatives if self.name not in c.similarity]) for g in groups]
        texts = [g.response for g in groups] + [c.text for _, candidates in lacking for c in candidates]
        unique = list(dict.fromkeys(texts))
        if not unique:
            return
        row = {text: i for i, text in enumerate(unique)}
        vectors = self.embedder.embed(unique)
        for group, candidates in lacking:
            truth = vectors[row[group.response]]
            group.response_embedding = group.response_embedding or truth.tolist()
            for candidate in candidates:
                candidate.similarity[self.name] = float(vectors[row[candidate.text]] @ truth)


SIGNAL = Embedding
