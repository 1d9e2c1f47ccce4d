"""Our own options of `python -m trainer.run`. Everything else is transformers' TrainingArguments and TRL's ModelConfig.

Imports nothing heavy, so that `--help` answers at once.
"""

from dataclasses import dataclass
from typing import get_type_hints

from data.config import option
from data.errors import UserError, did_you_mean
from data.sources import SPLITS

OBJECTIVES = {
    "mle": "next-token prediction on the ground truths",
    "cpo": "Contrastive Preference Optimization, best of K (arXiv 2502.16433, eq. 1)",
    "cpo-rank": "CPO with ranking, Plackett-Luce over the similarity order (eq. 2)",
    "dpo": "the baseline, TRL's DPOTrainer on pairs (ground truth, negative) of one strategy; a batch counts pairs",
}

# The paper's training settings (section 5), under their names in transformers' TrainingArguments.
PAPER_BATCH_SIZE = 64
PAPER_LEARNING_RATE = 1e-5
PAPER_WEIGHT_DECAY = 0.05

SPOKEN = {str: "text", str | None: "text", bool: "true or false", float: "a number", int | None: "a whole number"}


@dataclass
class ScriptArguments:
    """What to train on and towards which objective."""

    objective: str = option("cpo", "one of " + "; ".join(f"{k}: {v}" for k, v in OBJECTIVES.items()))
    model: str | None = option(None, "model to start from, a directory or hub id; for cpo the reference itself")
    shards: str | None = option(None, "negative set to train on: the directory or URL that negatives_gen wrote")
    use: str | None = option(None, "which negatives of the set, e.g. an=4; without it, all of them")
    rank_by: str | None = option(
        None, "cpo-rank: the ranking signal whose order is learnt, e.g. rouge (default: the set's first)"
    )
    beta: float = option(5.0, "temperature of the contrast")
    dataset: str | None = option(None, "mle without --shards: 'facts', a local .jsonl/.json/.parquet/.csv, or a hub id")
    task: str = option("prompt-completion", "mle without --shards: how a row becomes prompt and response")
    split: str = option("train", "which half of the data, or of the negative set, to train on: train, test or all")
    from_scratch: bool = option(False, "mle: start from random weights, made from the config.json of --model")
    row_tokens: int | None = option(
        None, "token budget of one forward pass; groups are packed up to it (default: 1024 on a CPU, 8192 on a GPU)"
    )

    def check(self) -> None:
        """Raise UserError for values of the wrong type, which a YAML file can hold, and for senseless combinations."""
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            is_bool = isinstance(value, bool)
            if is_bool != (kind is bool) or not isinstance(value, float | int if kind is float else kind):
                raise UserError(f"--{name} must be {SPOKEN[kind]}, got {value!r}.")
        if self.objective not in OBJECTIVES:
            near = did_you_mean(self.objective, OBJECTIVES)
            raise UserError(f"unknown objective '{self.objective}'.{near} Known: {', '.join(OBJECTIVES)}.")
        if self.model is None:
            raise UserError("python -m trainer.run needs --model: a directory with a transformers model, or a hub id.")
        if self.shards is None and (self.objective != "mle" or self.dataset is None):
            hint = " or --dataset" if self.objective == "mle" else ""
            raise UserError(f"objective '{self.objective}' needs --shards{hint}: what to train on.")
        if self.shards is not None and self.dataset is not None:
            raise UserError("give either --shards or --dataset, not both.")
        if self.from_scratch and self.objective != "mle":
            raise UserError("--from_scratch goes with --objective mle only; cpo starts from the reference model.")
        if self.split not in SPLITS:
            raise UserError(f"unknown split '{self.split}'. Use one of {', '.join(SPLITS)}.")
        if self.beta <= 0:
            raise UserError(f"--beta must be above 0, got {self.beta}.")
        for name in ("rank_by", "row_tokens"):
            if self.objective == "dpo" and getattr(self, name) is not None:
                raise UserError(f"--{name} does not apply to objective 'dpo', which trains on pairs. Leave it out.")
        if self.row_tokens is not None and self.row_tokens < 1:
            raise UserError(f"--row_tokens must be at least 1, got {self.row_tokens}.")
