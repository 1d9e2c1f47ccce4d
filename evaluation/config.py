"""Options of `python -m evaluation.run`. Imports nothing heavy, so that `--help` answers at once."""

import os
from dataclasses import dataclass, field
from typing import Any

from data.chat.settings import OPENAI_URL, known_options
from data.command.errors import UserError, did_you_mean
from data.command.options import option, resolve_path
from data.manifest import DTYPES
from data.sources.examples import SPLITS
from data.sources.tasks import TASKS, task_of
from evaluation.paper import paper_table
from trainer.ensemble.ensembles import directory_name, parse_alphas

# Metric -> the option it needs; "" where it needs none.
METRICS = {
    "correct": "",
    "win_rate": "judge",
    "reverse_kl": "second_model",
    "nll": "second_model",
    "mauve": "featuriser",
    "similarity": "embedder",
    "truth": "",
    "ranking": "shards",
    "text": "",
}
# Key of --judge -> default.
JUDGE: dict[str, Any] = {
    "model": None,
    "base_url": OPENAI_URL,
    "template": "dolly",
    "orders": "both",
    "temperature": 0.0,
    "max_tokens": 8,
    "seed": None,
    "concurrency": 16,
    "timeout": 60.0,
    "retries": 8,
    "max_requests": None,
    "max_cost": None,
    "input_price": None,
    "output_price": None,
    "reward_model": None,
}
TRUTH = "truth"
# The name of a sweep's MLE model; that of its ensembles is their directory's.
MLE = "mle"


@dataclass
class EvaluateConfig:
    """Which checkpoints to compare, on what, by which measures."""

    model: list[str] = option([], "NAME=PATH of a checkpoint; repeat for each to compare", repeat=True)
    dataset: str = option(
        None, "'facts' (the embedded example), a local .jsonl/.json/.parquet/.csv, or a hub id", required=True
    )
    out: str = option(None, "directory for report.md, report.json and report.html", required=True)
    task: str = option("prompt-completion", "how a row becomes prompt and response: " + ", ".join(TASKS))
    split: str = option("test", "which half of the data to evaluate on: train, test or all")
    limit: int | None = option(None, "evaluate on the first so many examples of the split")
    decode: list[str] = option(
        [], "greedy, sample, topkK, topkK-pP or beamB; repeat for each (default: greedy)", repeat=True
    )
    metrics: str | None = option(
        None, "which of " + ",".join(METRICS) + " (default: all that the other options make possible)"
    )
    max_new_tokens: int = option(256, "length of an answer in tokens, at most")
    seed: int = option(0, "of sampled answers, and of MAUVE's clusters")
    store: str | None = option(
        None, "directory of answers, verdicts and scores, reused by every run that names it (default: OUT/store)"
    )
    against: list[str] = option(
        [], "win rates against 'truth' or a model's name; repeat for several (default: truth)", repeat=True
    )
    judge: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "of win_rate: model, base_url, template (dolly, wiki or a file), orders (both or paper); its "
            "sampling: temperature (0), max_tokens (8), seed; its requests: timeout (60 s), retries (8), concurrency "
            "(16); caps of one run: max_requests, max_cost; prices per million tokens: input_price, output_price; or "
            "reward_model, a local directory, alone. The key comes from $OPENAI_API_KEY"
        },
    )
    second_model: str | None = option(None, "of reverse_kl and nll: a stronger model that stands for the truth")
    second_model_dtype: str = option("float32", f"that it computes in: {', '.join(DTYPES)}")
    featuriser: str | None = option(
        None, "of mauve (pip install mauve-text, GPLv3): a sentence-transformers model or a causal language model"
    )
    embedder: str | None = option(None, "of similarity: sentence-transformers name or path")
    shards: str | None = option(None, "of ranking: negative set whose groups of --split are ranked")
    sweep: str | None = option(None, "alpha=0,0.1,...: weight-space ensembles of --mle and --cpo")
    mle: str | None = option(None, "of --sweep: the model of weight alpha")
    cpo: str | None = option(None, "of --sweep: the model of weight 1 - alpha")
    paper: str | None = option(
        None,
        "table1 ... table5: the paper's numbers beside rows of the same name and decoding, if base model, task, data "
        "set and split are the paper's; what else differs (judge, orders, number of prompts) is noted",
    )
    engine: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "argument of vLLM's LLM, untouched, e.g. --engine.dtype bfloat16"}
    )

    def check(self) -> None:
        """Raise UserError for a value out of range, or a metric without what it needs."""
        task_of(self.task)
        if self.split not in SPLITS:
            raise UserError(f"unknown split '{self.split}'. Use one of {', '.join(SPLITS)}.")
        for key in ("limit", "max_new_tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"--{key} must be at least 1, got {value}.")
        if self.second_model_dtype not in DTYPES:
            raise UserError(
                f"unknown --second_model_dtype '{self.second_model_dtype}'. Use one of {', '.join(DTYPES)}."
            )
        places = [os.path.normpath(resolve_path(place)) for place in (self.store, self.out) if place is not None]
        if len(places) == 2 and places[0] == places[1]:
            raise UserError(f"--store and --out are both '{self.out}'. Give --store a directory of its own.")
        if self.embedder == "reference":
            raise UserError("--embedder must be one model for all checkpoints: a sentence-transformers name or path.")
        names = [*self.models(), *self.sweep_models()]
        if not names:
            raise UserError("nothing to evaluate. Give --model NAME=PATH, or --sweep with --mle and --cpo.")
        known_options("judge", self.judge, JUDGE)
        self.chosen_metrics()
        if self.paper is not None:
            paper_table(self.paper)
        for other in self.opponents():
            if other != TRUTH and other not in names:
                raise UserError(f"--against '{other}' is no model of this run.{did_you_mean(other, names)}")
        if self.against and "win_rate" not in self.chosen_metrics():
            raise UserError("--against belongs to metric win_rate. Give --judge.model or --judge.reward_model too.")
        if "win_rate" in self.chosen_metrics() and self.opponents() == names:
            raise UserError(f"--against '{names[0]}' is the only model. Give another --model, or --against truth.")

    def models(self) -> dict[str, str]:
        """Name -> path, in the order given."""
        models: dict[str, str] = {}
        for item in self.model:
            name, equals, path = item.partition("=")
            if not equals or not name or not path:
                raise UserError(f"--model '{item}' must read NAME=PATH, e.g. --model cpo=runs/cpo.")
            if name in models:
                raise UserError(f"--model names '{name}' twice; give each checkpoint its own name.")
            if name == TRUTH:
                raise UserError("--model 'truth' is what answers are compared with; choose another name.")
            models[name] = path
        return models

    def alphas(self) -> list[float]:
        """Those of --sweep, in its order; none without it."""
        if self.sweep is None:
            if self.mle or self.cpo:
                raise UserError("--mle and --cpo belong to --sweep alpha=0,0.1,... Add it, or give --model NAME=PATH.")
            return []
        name, _, values = self.sweep.partition("=")
        if name != "alpha" or not values:
            raise UserError(f"--sweep '{self.sweep}' must read alpha=A,B,..., e.g. alpha=0,0.1,0.3,0.5,0.7,0.9.")
        alphas = parse_alphas(values.split(","))
        if "://" in self.out:
            raise UserError(f"--out '{self.out}' is a URL, and --sweep writes models. Give a local directory.")
        if not self.mle or not self.cpo:
            raise UserError("--sweep needs --mle and --cpo, the two models that are mixed.")
        return alphas

    def sweep_models(self) -> list[str]:
        """Names of the models that --sweep adds."""
        alphas = self.alphas()
        names = [MLE, *map(directory_name, alphas)] if alphas else []
        for name in names:
            if name in self.models():
                raise UserError(f"--model '{name}' has the name of a model of --sweep. Give it another name.")
        return names

    def opponents(self) -> list[str]:
        """What win rates are against: "truth" or names of models."""
        return self.against or [TRUTH]

    def chosen_metrics(self) -> list[str]:
        """In the order of METRICS. Raises UserError for an unknown one, or one whose option is missing."""
        possible = {name for name, needed in METRICS.items() if not needed or getattr(self, needed)}
        if self.dataset != "facts":
            possible.discard("correct")
        if self.metrics is None:
            return [name for name in METRICS if name in possible]
        chosen = [name.strip() for name in self.metrics.split(",") if name.strip()]
        if not chosen:
            raise UserError(f"--metrics '{self.metrics}' names none. Use some of {', '.join(METRICS)}.")
        for name in chosen:
            if name not in METRICS:
                raise UserError(
                    f"unknown metric '{name}'.{did_you_mean(name, METRICS)} Use some of {', '.join(METRICS)}."
                )
            if name not in possible:
                needed = METRICS[name]
                what = f"--{needed}" + (".model or .reward_model" if needed == "judge" else "")
                raise UserError(f"metric '{name}' needs {what if needed else '--dataset facts'}. Give it.")
        return [name for name in METRICS if name in chosen]
