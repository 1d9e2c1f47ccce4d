"""`embedding`: cosine similarity of sentence embeddings, the paper's ranking signal (section 4.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from data.command.options import option
from data.schema import Group
from negatives_gen.models.embedder import REFERENCE, Embedder, embedder_identity
from negatives_gen.signals.base import Reference, Signal


@dataclass(frozen=True)
class Options:
    """The model whose embeddings are compared."""

    embedder: str = option(
        "sentence-transformers/all-MiniLM-L6-v2",
        "sentence-transformers name or path, or 'reference' for mean-pooled states of the reference model",
        is_name=True,
        words=(REFERENCE,),
        metavar="PATH",
    )

    def check(self) -> None:
        """Any name may be a model's: whether there is one is seen when it is looked for."""


class Embedding(Signal):
    """Cosine of each candidate's vector and the ground truth's, which becomes the group's response_embedding."""

    name = "embedding"
    summary = "cosine of sentence embeddings"
    Options: ClassVar = Options
    embeds = True

    def __init__(self, options: Any, reference: Reference):
        self.embedder = Embedder(options.embedder, reference.model, reference.trust_remote_code)

    @classmethod
    def identity(cls, options: Any, reference: Reference) -> dict[str, Any]:
        return embedder_identity(options.embedder, reference.model)

    def add(self, groups: Sequence[Group]) -> None:
        lacking = [(g, [c for c in g.negatives if self.name not in c.similarity]) for g in groups]
        texts = [g.response for g in groups if not g.response_embedding]
        texts += [c.text for _, candidates in lacking for c in candidates]
        unique = list(dict.fromkeys(texts))
        if not unique:
            return
        vectors = self.in_parts(self.embedder.embed, unique, self.embedder.batch_size)
        vector_of = dict(zip(unique, vectors, strict=True))
        for group, candidates in lacking:
            if not group.response_embedding:
                group.response_embedding = vector_of[group.response].tolist()
            truth = np.asarray(group.response_embedding, dtype=np.float32)
            for candidate in candidates:
                candidate.similarity[self.name] = float(vector_of[candidate.text] @ truth)


SIGNAL = Embedding
