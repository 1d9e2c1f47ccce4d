"""Stand-ins for the models, for a plan that is to load none: answers as long as the data's own, and random numbers."""

import contextlib
import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.architectures import of_text, sizes
from data.command.errors import UserError
from data.models import read_object
from data.schema import Group
from negatives_gen.job.actors import Components
from negatives_gen.job.inputs import Shard
from negatives_gen.models.embedder import REFERENCE
from negatives_gen.models.engine import Request, Sample
from negatives_gen.signals import SIGNALS, Reference, Signal

DEFAULT_DIMENSION = 384  # of all-MiniLM-L6-v2


class StandInEngine:
    """Answers with ground truths of other rows, cut where a sampled continuation would be."""

    slots = 1

    def __init__(self, truths: Sequence[tuple[Sequence[int], str]]):
        self.truths = truths

        self.running = self.unfinished = 0
        self._requests: list[tuple[str, Request]] = []

    def start(self, key: str, request: Request) -> None:
        self._requests.append((key, request))

    def step(self) -> list[tuple[str, list[Sample]]]:
        requests, self._requests = self._requests, []
        return [
            (key, [self._cut(t, r.max_tokens) for t in random.Random(r.seed).choices(self.truths, k=r.n)])
            for key, r in requests
        ]

    def _cut(self, truth: tuple[Sequence[int], str], limit: int) -> Sample:
        ids, text = truth
        share = min(1.0, limit / len(ids))
        # A number in front makes every text a new one.
        return Sample(
            list(ids[:limit]), f"{random.random():.6f}"[2:] + text[: int(share * len(text))], "stop", -1.0, None
        )


class StandInScorer:
    """Random log-probabilities, and random tokens for MN."""

    layout = "packed"

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def score(self, groups: Sequence[Any]) -> list[list[float]]:
        return [[-random.random() * len(c) for c in group.continuations] for group in groups]

    def score_and_rank(
        self, groups: Sequence[Any], ranked: Sequence[bool]
    ) -> tuple[list[list[float]], list[int | None]]:
        return self.score(groups), [0 if asked else None for asked in ranked]

    def draw(self, groups: Sequence[Any], uniforms: Sequence[np.ndarray], **_: Any) -> list[np.ndarray]:
        return [(u * self.vocabulary).astype(np.int64) for u in uniforms]


class StandInSignal(Signal):
    """Random similarities, and embeddings of the right dimension if the signal sets any."""

    def __init__(self, name: str, options: Any, reference: Reference):
        self.name, self.only_of = name, SIGNALS.load(name).only_of
        self.dimension = _dimension(options, reference) if SIGNALS.load(name).embeds else 0

    @classmethod
    def identity(cls, options: Any, reference: Reference) -> dict[str, Any]:
        return {}

    def add(self, groups: Sequence[Group]) -> None:
        for group in groups:
            if self.dimension:
                group.response_embedding = [random.random() for _ in range(self.dimension)]
            for candidate in group.negatives:
                candidate.similarity.setdefault(self.name, random.random())


def stand_in_components(shards: Sequence[Shard], vocabulary: int) -> Components:
    """Stand-ins that know the rows of the sample."""
    truths = [(g.response_ids, g.response) for shard in shards for g in shard.pool]
    return Components(
        engine=lambda *_, **__: StandInEngine(truths),
        scorer=lambda *_, **__: StandInScorer(vocabulary),
        signals=lambda options, reference: [StandInSignal(name, of, reference) for name, of in options.items()],
    )


def _dimension(options: Any, reference: Reference) -> int:
    """The dimension of the embeddings, from the config.json of the model that the options name, if it is here."""
    for name in [getattr(options, f.name) for f in dataclasses.fields(options) if f.metadata.get("is_name")]:
        directory = Path(reference.model if name == REFERENCE else name)
        with contextlib.suppress(UserError):
            width = sizes(of_text(read_object(directory / "config.json")))["hidden_size"]
            if type(width) is int and width > 0:
                return width
    return DEFAULT_DIMENSION
