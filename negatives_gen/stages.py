"""The two stages that Ray Data runs as actors: sample, then score, embed and write. A row is a whole shard."""

import pickle
import time
from typing import Any

from data.shards import NegativeSetWriter
from negatives_gen.autoregressive import AutoregressiveSettings, add_autoregressive


class SampleStage:
    """A vLLM engine that gives the groups of a shard their sampled negatives."""

    def __init__(
        self, model: str, settings: AutoregressiveSettings, *, context: int, seed: int, options: dict[str, Any]
    ):
        from negatives_gen.engine import Engine

        self.engine = Engine(model, seed=seed, options=options)
        self.settings = settings
        self.context = context
        self.seed = seed

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        groups, rejects = pickle.loads(row["payload"])
        groups, too_few = add_autoregressive(
            groups, self.engine, self.settings, context=self.context, seed=self.seed
        )
        payload = pickle.dumps((groups, rejects + too_few))
        return {"shard": row["shard"], "payload": payload, "sample_seconds": time.perf_counter() - started}


class ScoreStage:
    """Reference log-probabilities, embeddings and similarities; then the shard is written."""

    def __init__(self, model: str, embedder: str, writer: NegativeSetWriter, *, dtype: str):
        from negatives_gen.embedder import Embedder
        from trainer.logprobs import Scorer

        self.scorer = Scorer.load(model, dtype=dtype)
        self.embedder = Embedder(embedder, model)
        self.writer = writer

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
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
        return {"shard": row["shard"], "rows": record.rows, "tokens": record.tokens["negatives"]}
