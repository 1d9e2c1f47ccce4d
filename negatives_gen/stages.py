"""The two stages that Ray Data runs as actors: sample, then score, embed and write. A row is a whole shard."""

import pickle
import time
from typing import Any

from data.errors import UserError
from data.shards import NegativeSetWriter
from negatives_gen.autoregressive import AutoregressiveSettings, add_autoregressive


class Stage:
    """An actor of the pipeline whose UserErrors reach the driver as rows with an `error`, its other errors as raised.

    Two habits of Ray Data make this necessary: it restarts an actor whose constructor raises, without end and without
    a word to the driver; and what a row raises comes with pages of its own stack trace.
    """

    failure: Exception | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        try:
            self.start(*args, **kwargs)
        except Exception as error:
            self.failure = error

    def start(self, *args: Any, **kwargs: Any) -> None:
        """Load what the stage needs, once per actor."""
        raise NotImplementedError

    def run(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do the stage's work on one shard."""
        raise NotImplementedError

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["error"]:
            return row
        try:
            if self.failure is not None:
                raise self.failure
            return {"shard": row["shard"], "error": "", **self.run(row)}
        except UserError as error:
            return {"shard": row["shard"], "error": str(error)}


class SampleStage(Stage):
    """A vLLM engine that gives the groups of a shard their sampled negatives."""

    def start(
        self, model: str, settings: AutoregressiveSettings, *, context: int, seed: int, options: dict[str, Any]
    ) -> None:
        from negatives_gen.engine import Engine

        self.engine = Engine(model, seed=seed, options=options)
        self.settings = settings
        self.context = context
        self.seed = seed

    def run(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        groups, rejects = pickle.loads(row["payload"])
        groups, too_few = add_autoregressive(groups, self.engine, self.settings, context=self.context, seed=self.seed)
        payload = pickle.dumps((groups, rejects + too_few))
        return {"payload": payload, "sample_seconds": time.perf_counter() - started}


class ScoreStage(Stage):
    """Reference log-probabilities, embeddings and similarities; then the shard is written."""

    def start(self, model: str, embedder: str, writer: NegativeSetWriter, *, dtype: str) -> None:
        from negatives_gen.embedder import Embedder
        from trainer.logprobs import Scorer

        self.scorer = Scorer.load(model, dtype=dtype)
        self.embedder = Embedder(embedder, model)
        self.writer = writer

    def run(self, row: dict[str, Any]) -> dict[str, Any]:
        from negatives_gen.embedder import add_similarity
        from trainer.packing import Continuations

        groups, rejects = pickle.loads(row["payload"])
        started = time.perf_counter()
        scores = self.scorer.score(
            [Continuations(g.prompt_ids, [g.response_ids, *(c.ids for c in g.negatives)]) for g in groups]
        )
        for group, (truth, *negatives) in zip(groups, scores, strict=True):
            group.reference_logp = truth
            for candidate, logp in zip(group.negatives, negatives, strict=True):
                candidate.reference_logp = logp
        scored = time.perf_counter()
        add_similarity(groups, self.embedder)
        seconds = {
            "sample": row["sample_seconds"],
            "score": scored - started,
            "embed": time.perf_counter() - scored,
        }
        record = self.writer.write_shard(
            row["shard"], groups, rejects, seconds=seconds, attention_path=self.scorer.path
        )
        return {"rows": record.rows, "tokens": record.tokens["negatives"]}
