"""Options of `python -m negatives_gen`. Imports nothing heavy, so that `--help` answers at once."""

import math
from dataclasses import dataclass
from typing import Any

from data.config import option
from data.errors import UserError
from data.sources import SPLITS
from data.strategies import parse_counts
from data.tasks import check_task

AVAILABLE_STRATEGIES = ("an",)


@dataclass
class GenerateConfig:
    """What to generate, from what, and where to."""

    model: str = option(None, "reference model: a directory or hub id (safetensors, with its tokenizer)", required=True)
    dataset: str = option(
        None, "'facts' (the embedded example), a local .jsonl/.json/.parquet/.csv, or a hub id", required=True
    )
    out: str = option(None, "directory or URL (s3://, gs://) of the negative set", required=True)
    task: str = option("prompt-completion", "how a row becomes prompt and response: dolly or prompt-completion")
    split: str = option("train", "train, test or all; halves that depend on the rows' content alone")
    limit: int | None = option(None, "read only the first so many examples of the split")
    strategies: str = option("an=11", "negatives per group, e.g. an=11")
    top_k: int = option(50, "sample among the k most likely tokens (0: all)")
    temperature: float = option(1.0, "sampling temperature")
    max_new_tokens: int = option(256, "length of a sampled continuation in tokens, at most")
    embedder: str = option(
        "sentence-transformers/all-MiniLM-L6-v2",
        "sentence-transformers name or path, or 'reference' for mean-pooled states of the reference model",
    )
    groups_per_shard: int = option(512, "examples per shard, the unit of work, of resume and of retry")
    seed: int = option(0, "seed of the sampling")
    num_engines: int | None = option(None, "vLLM engines (default: one per GPU, or one on CPUs)")
    engine: dict[str, Any] = option({}, "any argument of vLLM's LLM, untouched: --engine.tensor_parallel_size 2")

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        check_task(self.task)
        if self.split not in SPLITS:
            raise UserError(f"unknown split '{self.split}'. Use one of {', '.join(SPLITS)}.")
        for strategy in parse_counts(self.strategies, "--strategies"):
            if strategy not in AVAILABLE_STRATEGIES:
                raise UserError(
                    f"strategy '{strategy}' is not available yet; available: {', '.join(AVAILABLE_STRATEGIES)}."
                )
        at_least_one = {
            "limit": self.limit,
            "max_new_tokens": self.max_new_tokens,
            "groups_per_shard": self.groups_per_shard,
            "num_engines": self.num_engines,
        }
        for key, value in at_least_one.items():
            if value is not None and value < 1:
                raise UserError(f"--{key} must be at least 1, got {value}.")
        if self.top_k < 0:
            raise UserError(f"--top_k must be 0 (all tokens) or more, got {self.top_k}.")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"--temperature must be above 0, got {self.temperature}: negatives are sampled.")
