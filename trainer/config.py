"""Our own options of `python -m trainer.run`. Everything else is transformers' TrainingArguments and TRL's ModelConfig.

Imports nothing heavy, so that `--help` answers at once.
"""

from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from data.command.errors import UserError, did_you_mean
from data.command.options import option
from data.sources.examples import SPLITS

OBJECTIVES = {
    "mle": "next-token prediction on the ground truths",
    "pss": "the baseline, next-token prediction by parallel scheduled sampling (arXiv 1906.04331)",
    "cpo": "Contrastive Preference Optimization, best of K (arXiv 2502.16433, eq. 1)",
    "cpo-rank": "CPO with ranking, Plackett-Luce over the similarity order (eq. 2)",
    "dpo": "the baseline, TRL's DPOTrainer on pairs (ground truth, negative) of one strategy; a batch counts pairs",
}

GROUND_TRUTHS_ALONE = ("mle", "pss")
PSS = ("pss_share", "pss_passes", "pss_mixtures")

# The paper's training settings (section 5), under their names in transformers' TrainingArguments.
PAPER_BATCH_SIZE = 64
# "We fix the learning rate to be 1e-5": constant, or the same in all experiments? The paper names no schedule, so
# transformers' linear decay to 0 stays.
PAPER_LEARNING_RATE = 1e-5
PAPER_WEIGHT_DECAY = 0.05

SPOKEN = {
    str: "text",
    str | None: "text",
    list[str] | None: "one or more texts",
    bool: "true or false",
    float: "a number",
    float | None: "a number",
    int: "a whole number",
    int | None: "a whole number",
}


@dataclass
class ScriptArguments:
    """What to train on and towards which objective."""

    objective: str = option("cpo", "one of " + "; ".join(f"{k}: {v}" for k, v in OBJECTIVES.items()))
    model: str | None = option(None, "model to start from, a directory or hub id; for cpo the reference itself")
    shards: list[str] | None = option(None, "negative sets to train on: directories or URLs that negatives_gen wrote")
    use: str | None = option(
        None, "which negatives, e.g. an=4,bn=3, or an=4:random for a fresh draw each epoch (default: all)"
    )
    min_similarity: float | None = option(None, "leave out negatives less similar to the ground truth, by --rank_by")
    max_similarity: float | None = option(None, "leave out negatives more similar to the ground truth, by --rank_by")
    rank_by: str | None = option(
        None,
        "ranking signal, e.g. rouge: cpo-rank learns its order, --min/max_similarity and the logged Kendall's tau are "
        "by it (default: the set's first)",
    )
    beta: float = option(5.0, "temperature of the contrast; mle and pss have none and ignore it")
    sft_weight: float = option(
        0.0, "cpo and cpo-rank: weight of the MLE term on the ground truths, per token, beside the contrast"
    )
    pss_share: float = option(0.25, "pss: probability that a sampled token takes a gold token's place in the input")
    pss_passes: int = option(1, "pss: sampling passes")
    pss_mixtures: int = option(3, "pss: mixtures per example (the paper's 3)")
    eval_shards: list[str] | None = option(
        None, "negative sets of held-out groups for --eval_strategy (default: --shards)"
    )
    eval_split: str = option("test", "which half of the data to watch with --eval_strategy")
    max_eval_samples: int | None = option(None, "watch the first so many held-out groups only")
    dataset: str | None = option(
        None, "mle and pss without --shards: 'facts', a local .jsonl/.json/.parquet/.csv, or a hub id"
    )
    task: str = option("prompt-completion", "mle and pss without --shards: how a row becomes prompt and response")
    split: str = option("train", "which half of the data, or of the negative set, to train on: train, test or all")
    from_scratch: bool = option(False, "mle: start from random weights, made from the config.json of --model")
    row_tokens: int | None = option(
        None, "token budget of one forward pass; groups are packed up to it (default: 1024 on a CPU, 8192 on a GPU)"
    )

    def __post_init__(self) -> None:
        # A YAML file may name one set as a text.
        for name in ("shards", "eval_shards"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])

    def check(self) -> None:
        """Raise UserError for values of the wrong type, which a YAML file can hold, and for senseless combinations."""
        for name, kind in get_type_hints(type(self)).items():
            if not _is(getattr(self, name), kind):
                raise UserError(f"--{name} must be {SPOKEN[kind]}, got {getattr(self, name)!r}.")
        if self.objective not in OBJECTIVES:
            near = did_you_mean(self.objective, OBJECTIVES)
            raise UserError(f"unknown objective '{self.objective}'.{near} Known: {', '.join(OBJECTIVES)}.")
        if self.model is None:
            raise UserError("python -m trainer.run needs --model: a directory with a transformers model, or a hub id.")
        truths_alone = self.objective in GROUND_TRUTHS_ALONE
        if not self.shards and (not truths_alone or self.dataset is None):
            hint = " or --dataset" if truths_alone else ""
            raise UserError(f"objective '{self.objective}' needs --shards{hint}: what to train on.")
        if self.shards and self.dataset is not None:
            raise UserError("give either --shards or --dataset, not both.")
        if self.from_scratch and self.objective != "mle":
            raise UserError("--from_scratch goes with --objective mle only; cpo starts from the reference model.")
        for split in (self.split, self.eval_split):
            if split not in SPLITS:
                raise UserError(f"unknown split '{split}'. Use one of {', '.join(SPLITS)}.")
        if self.beta <= 0:
            raise UserError(f"--beta must be above 0, got {self.beta}.")
        if self.sft_weight < 0 or (self.sft_weight and self.objective not in ("cpo", "cpo-rank")):
            raise UserError("--sft_weight must be 0 or more, and goes with --objective cpo and cpo-rank.")
        if not 0 <= self.pss_share <= 1:
            raise UserError(f"--pss_share must be from 0 to 1, got {self.pss_share}.")
        for name in ("pss_passes", "pss_mixtures", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, got {value}.")
        low, high = self.min_similarity, self.max_similarity
        if low is not None and high is not None and low > high:
            raise UserError(f"--min_similarity {low} is above --max_similarity {high}.")
        self._refuse_idle()
        if self.objective == "dpo" and ":random" in (self.use or ""):
            raise UserError("objective 'dpo' trains on pairs that are made once. Leave ':random' out of --use.")
        if self.row_tokens is not None and self.row_tokens < 1:
            raise UserError(f"--row_tokens must be at least 1, got {self.row_tokens}.")

    def _refuse_idle(self) -> None:
        """Options that would do nothing: who gives one expects it to count. Not beta: objectives share a YAML file."""
        idle: list[tuple[bool, str, tuple[str, ...]]] = [
            (
                self.objective in GROUND_TRUTHS_ALONE,
                f"objective '{self.objective}', which trains on ground truths alone",
                ("use", "rank_by", "min_similarity", "max_similarity"),
            ),
            (self.objective != "pss", f"objective '{self.objective}'", PSS),
            (self.objective == "dpo", "objective 'dpo', which trains on pairs", ("row_tokens",)),
            (
                self.objective == "dpo" and self.min_similarity is None and self.max_similarity is None,
                "objective 'dpo' without --min_similarity or --max_similarity",
                ("rank_by",),
            ),
            (bool(self.shards), "--shards, whose prompts are made", ("task",)),
            (self.dataset is not None, "--dataset", ("eval_shards",)),
        ]
        for applies, to, names in idle:
            for field in fields(self):
                if applies and field.name in names and getattr(self, field.name) != field.default:
                    raise UserError(f"--{field.name} does not apply to {to}. Leave it out.")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of one of the types that options have; 1 is a number, true is none."""
    if kind == list[str] | None:
        return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    if isinstance(value, bool):
        return kind is bool
    if kind in (float, float | None) and isinstance(value, int):
        return True
    return isinstance(value, kind)
