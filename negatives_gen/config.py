"""Options of `python -m negatives_gen`. Imports nothing heavy, so that `--help` answers at once."""

from dataclasses import dataclass
from typing import Any

from data.command.errors import UserError, did_you_mean
from data.command.options import option
from data.counts import parse_counts
from data.manifest import DTYPES
from data.schema import SIGNALS
from data.sources.examples import SPLITS
from data.sources.tasks import TASKS, task_of
from negatives_gen.strategies import available, load_strategy

LOG_FORMATS = ("text", "json")


@dataclass
class StrategyOptions:
    """How the strategies make negatives, which signals rank them, and with what they are computed."""

    strategies: str = option(
        "an=11", "negatives per group: " + "; ".join(f"{n} {load_strategy(n).summary}" for n in available())
    )
    top_k: int = option(50, "an: sample among the k most likely tokens (0: all)")
    temperature: float = option(1.0, "an: sampling temperature")
    max_new_tokens: int = option(256, "an, un: length of a continuation in tokens, at most")
    bn_batch_size: int = option(64, "bn: rows of a batch, whose ground truths its groups borrow from one another")
    mn_share: float = option(0.15, "mn: share of the ground truth's tokens that are redrawn")
    api: dict[str, Any] = option(
        {}, "un: --api.model NAME, --api.base_url URL (an OpenAI-compatible server; key from $OPENAI_API_KEY) ..."
    )
    signals: str = option("embedding", "ranking signals, any of " + ",".join(SIGNALS) + "; the first is the default")
    embedder: str = option(
        "sentence-transformers/all-MiniLM-L6-v2",
        "sentence-transformers name or path, or 'reference' for mean-pooled states of the reference model",
    )
    reward_model: str | None = option(None, "reward: a sequence-classification model, directory or hub id")
    bertscore_model: str | None = option(None, "bertscore: an encoder, directory or hub id")
    trust_remote_code: bool = option(
        False, "run Python code that comes with a model (true only if you trust it); not of a bertscore_model"
    )
    num_engines: int | None = option(None, "vLLM engines (default: one per GPU, or one on CPUs)")
    engine: dict[str, Any] = option({}, "any argument of vLLM's LLM, untouched: --engine.tensor_parallel_size 2")
    log_format: str = option(
        "text",
        "text for people, or json for clusters: progress, log and errors as one JSON object a line (what stays text: "
        "errors in the command line itself, and what Ray and vLLM print)",
    )
    push_to_hub: str | None = option(None, "hub data set to upload the finished set to, e.g. me/my-negatives")

    def strategy_settings(self) -> dict[str, dict[str, Any]]:
        """Strategy -> count and what else decides its negatives. Raises UserError for a value out of range."""
        counts = parse_counts(self.strategies, "--strategies", available())
        return {name: {"count": counts[name], **load_strategy(name).settings(self)} for name in sorted(counts)}

    def signal_names(self) -> list[str]:
        """The ranking signals, the default first. Raises UserError for an unknown or repeated one."""
        names = [name.strip() for name in self.signals.split(",")]
        for name in names:
            if name not in SIGNALS:
                raise UserError(
                    f"unknown ranking signal '{name}'.{did_you_mean(name, SIGNALS)} Known: {', '.join(SIGNALS)}."
                )
            if names.count(name) > 1:
                raise UserError(f"--signals '{self.signals}' names '{name}' twice.")
        for name, model in (("reward", self.reward_model), ("bertscore", self.bertscore_model)):
            if name in names and not model:
                raise UserError(f"ranking signal '{name}' needs --{name}_model: a directory or a hub id.")
        return names

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        self.strategy_settings()
        self.signal_names()
        self.check_run()

    def check_run(self) -> None:
        """Of what decides how it runs and not what is made: raise UserError for a value out of range."""
        if self.num_engines is not None and self.num_engines < 1:
            raise UserError(f"--num_engines must be at least 1, got {self.num_engines}.")
        if self.log_format not in LOG_FORMATS:
            raise UserError(f"--log_format must be text or json, got '{self.log_format}'.")


@dataclass
class GenerateConfig(StrategyOptions):
    """What to generate, from what, and where to."""

    model: str = option(None, "reference model: a directory or hub id (safetensors, with its tokenizer)", required=True)
    dataset: str = option(
        None, "'facts' (the embedded example), a local .jsonl/.json/.parquet/.csv, or a hub id", required=True
    )
    out: str = option(None, "directory or URL (s3://, gs://) of the negative set", required=True)
    task: str = option("prompt-completion", "how a row becomes prompt and response: " + ", ".join(TASKS))
    split: str = option("train", "train, test or all; halves that depend on the rows' content alone")
    limit: int | None = option(None, "read only the first so many examples of the split")
    streaming: bool = option(
        False,
        "read the data set as a stream in its own order, to its end or --limit before an engine starts; "
        "its examples lie under --out until the set is finished",
    )
    max_length: int | None = option(None, "prompt and response in tokens, at most (default: the model's context)")
    scorer_dtype: str = option(
        "float32", "in what the reference scores: float32, bfloat16 or float16; train in the same, see --dtype there"
    )
    groups_per_shard: int = option(512, "examples per shard, the unit of work, of resume and of retry")
    seed: int = option(0, "seed of everything that is drawn")

    def check(self) -> None:
        super().check()
        task_of(self.task)
        if self.split not in SPLITS:
            raise UserError(f"unknown split '{self.split}'. Use one of {', '.join(SPLITS)}.")
        if self.scorer_dtype not in DTYPES:
            raise UserError(f"unknown --scorer_dtype '{self.scorer_dtype}'. Use one of {', '.join(DTYPES)}.")
        at_least_one = {
            "limit": self.limit,
            "max_length": self.max_length,
            "groups_per_shard": self.groups_per_shard,
        }
        for key, value in at_least_one.items():
            if value is not None and value < 1:
                raise UserError(f"--{key} must be at least 1, got {value}.")
