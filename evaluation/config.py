"""Options of `python -m evaluation.run`. Imports nothing heavy, so that `--help` answers at once."""

from dataclasses import dataclass

from data.config import option
from data.errors import UserError
from data.sources import SPLITS
from data.tasks import TASKS, check_task


@dataclass
class EvaluateConfig:
    """Which checkpoints to compare, and on what."""

    model: list[str] = option([], "NAME=PATH of a checkpoint; repeat for each to compare", repeat=True, required=True)
    dataset: str = option(
        None, "'facts' (the embedded example), a local .jsonl/.json/.parquet/.csv, or a hub id", required=True
    )
    out: str = option(None, "directory for report.md, report.json and the answers", required=True)
    task: str = option("prompt-completion", "how a row becomes prompt and response: " + ", ".join(TASKS))
    split: str = option("test", "which half of the data to evaluate on: train, test or all")
    limit: int | None = option(None, "evaluate on the first so many examples of the split")
    max_new_tokens: int = option(256, "length of a greedy answer in tokens, at most")
    shards: str | None = option(None, "negative set whose groups of --split give ranking accuracy and Kendall's tau")
    embedder: str | None = option(
        None, "sentence-transformers name or path: adds the similarity of each answer to its ground truth"
    )

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        check_task(self.task)
        if self.split not in SPLITS:
            raise UserError(f"unknown split '{self.split}'. Use one of {', '.join(SPLITS)}.")
        for key in ("limit", "max_new_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"--{key} must be at least 1, got {value}.")
        if self.embedder == "reference":
            raise UserError("--embedder must be one model for all checkpoints: a sentence-transformers name or path.")
        self.models()

    def models(self) -> dict[str, str]:
        """Name -> path, in the order given."""
        models: dict[str, str] = {}
        for item in self.model:
            name, equals, path = item.partition("=")
            if not equals or not name or not path:
                raise UserError(f"--model '{item}' must read NAME=PATH, e.g. --model cpo=runs/cpo.")
            if name in models:
                raise UserError(f"--model names '{name}' twice; give each checkpoint its own name.")
            models[name] = path
        return models
