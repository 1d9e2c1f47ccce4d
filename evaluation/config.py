"""Options of `python -m evaluation.run`. Imports nothing heavy, so that `--help` answers at once."""

import os
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from data.command.entries import check, idle
from data.command.errors import UserError
from data.command.options import entry_options, option, require_local, resolve_path
from data.command.registry import OR_OWN
from data.command.trackers import HELP, NONE, check_trackers
from data.command.values import require_positive, require_seed
from data.sources.source_options import DATASET_HELP, SourceOptions
from evaluation.metrics import METRICS, as_asked, in_order
from evaluation.metrics.base import TRUTH, AnswerMetric, Metric, Request
from evaluation.paper import paper_table
from trainer.ensemble.ensembles import directory_name, parse_alphas

# In --out while it is written: what libraries print.
LOG = "evaluation_log.txt"
# The name of a sweep's MLE model; that of its ensembles is their directory's.
MLE = "mle"
# What --sweep begins with.
ALPHA = "alpha="


@dataclass
class EvaluateConfig(SourceOptions):
    """Which checkpoints to compare, on what, by which measures."""

    model: list[str] = option(
        [], "checkpoints to compare; bare, the last part of the path is the name", metavar="NAME=PATH"
    )
    dataset: str = option(None, DATASET_HELP, required=True, metavar="PATH")
    out: str = option(None, "directory for report.md, report.json and report.html", required=True, metavar="DIR")
    split: str = option("test", "which half of the data to evaluate on: train, test or all", metavar="HALF")
    limit: int | None = option(None, "evaluate on the first so many examples of the split")
    decode: list[str] = option(
        [],
        "greedy, sample, topkK, topkK-pP or beamB, e.g. topk50-p0.7 (default: greedy, if a metric is of answers)",
        metavar="DECODING",
    )
    metrics: list[str] | None = option(
        None,
        "which measures, what matters most first (default: all of ours that the other options make possible): "
        + "; ".join(f"{metric.name}: {metric.summary}" for metric in in_order(METRICS.names()))
        + f"; {OR_OWN}",
        metavar="NAME",
    )
    max_length: int | None = option(
        None, "prompt and answer in tokens, at most (default: the models' contexts, which a config.json may not say)"
    )
    max_new_tokens: int = option(256, "length of an answer in tokens, at most")
    seed: int = option(0, "of sampled answers, and of whatever a metric draws")
    store: str | None = option(
        None,
        "directory of answers, verdicts and scores, reused by every run that names it (default: OUT/store)",
        metavar="DIR",
    )
    sweep: list[str] | None = option(None, "weight-space ensembles of --mle and --cpo", metavar="alpha=0,0.1,...")
    mle: str | None = option(None, "of --sweep: the model of weight alpha", metavar="PATH")
    cpo: str | None = option(None, "of --sweep: the model of weight 1 - alpha", metavar="PATH")
    paper: str | None = option(
        None,
        "table1 ... table5: the paper's numbers beside rows of the same name and decoding, if base model, task, data "
        "set and split are the paper's; what else differs (judge, orders, number of prompts) is noted",
        metavar="TABLE",
    )
    engine: dict[str, Any] = option({}, "argument of vLLM's LLM, untouched, e.g. --engine.dtype bfloat16")
    report_to: list[str] = option([NONE], HELP, metavar="NAME")
    push_to_hub: str | None = option(
        None,
        "hub data set to upload the report to, with its samples, e.g. me/my-report; a new one is public unless its "
        "owner's settings on the hub say otherwise",
        metavar="REPO",
    )
    verbose: bool = option(
        False, f"show what vLLM and other libraries print, which else goes to OUT/{LOG} until the report is written"
    )
    metric_options: dict[str, Any] = entry_options(METRICS, chosen_by="metrics", help="options of metrics")

    def check(self) -> None:
        """Raise UserError for a value out of range, or a metric without what it needs."""
        self.check_source(self.split)
        require_positive(self, "limit", "max_length", "max_new_tokens")
        require_seed(self.seed)
        check_trackers(self.report_to)
        places = [os.path.normpath(resolve_path(place)) for place in (self.store, self.out) if place is not None]
        if len(places) == 2 and places[0] == places[1]:
            raise UserError(f"--store and --out are both '{self.out}'. Give --store a directory of its own.")
        if not self.names():
            raise UserError("nothing to evaluate. Give --model NAME=PATH, or --sweep with --mle and --cpo.")
        if self.paper is not None:
            paper_table(self.paper)
        for name, options in self.metric_options.items():
            check(options)
            METRICS.load(name).check(options, self.request())
        self._refuse_idle()

    def models(self) -> dict[str, str]:
        """Name -> path, in the order given."""
        models: dict[str, str] = {}
        for item in self.model:
            name, path = _named(item)
            if name in models:
                raise UserError(f"--model names '{name}' twice; give each checkpoint its own name, NAME=PATH.")
            if name == TRUTH:
                raise UserError("--model 'truth' is what answers are compared with; choose another name.")
            models[name] = path
        return models

    def alphas(self) -> list[float]:
        """The alphas of --sweep, in its order; none without it."""
        if self.sweep is None:
            if self.mle or self.cpo:
                raise UserError("--mle and --cpo belong to --sweep alpha=0,0.1,... Add it, or give --model NAME=PATH.")
            return []
        # A list like any other: "alpha=0,0.1", "alpha=0 0.1", or the flag given twice.
        values = [item.removeprefix(ALPHA) for item in self.sweep]
        if not (self.sweep and self.sweep[0].startswith(ALPHA) and values[0]):
            given = ",".join(self.sweep)
            raise UserError(f"--sweep '{given}' must read alpha=A,B,..., e.g. alpha=0,0.1,0.3,0.5,0.7,0.9.")
        alphas = parse_alphas(values)
        require_local(self.out, "--out", ", and --sweep writes models")
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

    def names(self) -> list[str]:
        """Names of all models that are compared, of a sweep's too."""
        return [*self.models(), *self.sweep_models()]

    def chosen_metrics(self) -> list[type[Metric]]:
        """The metrics to measure: as --metrics names them, else in their own order. The report follows it.

        Raises:
            UserError: a metric is unknown, or lacks what it needs.
        """
        if self.metrics is None:
            return [metric for metric in in_order(METRICS.names()) if not self._lacks(metric)]
        if not self.metrics:
            raise UserError(
                f"--metrics names none. Use some of {', '.join(m.name for m in in_order(METRICS.names()))}."
            )
        metrics = as_asked(self.metrics)
        for metric in metrics:
            if needed := self._lacks(metric):
                raise UserError(f"metric '{metric.name}' needs {needed}. Give it.")
        return metrics

    def decodings(self) -> list[str]:
        """How answers are made: as --decode says, else greedily; not at all where nothing needs answers."""
        needed = self.sweep is not None or any(issubclass(metric, AnswerMetric) for metric in self.chosen_metrics())
        return self.decode or (["greedy"] if needed else [])

    def request(self) -> Request:
        """What metrics check their options against."""
        return Request(self.dataset, self.names(), [metric.name for metric in self.chosen_metrics()])

    def _refuse_idle(self) -> None:
        """Options of metrics that are not measured: who gives one expects it to count."""
        for key, names in idle(self.metric_options, [metric.name for metric in self.chosen_metrics()]).items():
            needed, listed = self._lacks(METRICS.load(names[0])), " and ".join(f"'{name}'" for name in names)
            lacked = f"{listed}. Add {'one' if len(names) > 1 else 'it'}"
            why = f" without {needed}. Give that too" if needed else f": --metrics lacks {lacked}"
            raise UserError(f"--{key} does nothing{why}, or leave it out.")

    def _lacks(self, metric: type[Metric]) -> str:
        """What must be given for a metric; "" if nothing is missing."""
        named = [chosen.name for chosen in as_asked(self.metrics or ())]
        return metric.needs(self.metric_options[metric.name], Request(self.dataset, self.names(), named))


def _named(item: str) -> tuple[str, str]:
    """Name and path of NAME=PATH; of a bare PATH its last part is the name.

    A = within a bare path is told by a / before it, or by the path, which is there while that behind the = is not.
    """
    name, equals, path = item.partition("=")
    if not equals or "/" in name or (_is_there(item) and not _is_there(path)):
        name, path = PurePath(os.path.normpath(resolve_path(item))).name, item
    if not name or not path:
        raise UserError(
            f"--model '{item}' must read NAME=PATH, e.g. --model cpo=runs/cpo, or be a path that has a name."
        )
    return name, path


def _is_there(path: str) -> bool:
    return os.path.exists(resolve_path(path))
