"""Options of `python -m negatives_gen`. Imports nothing heavy, so that `--help` answers at once."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from data.command.entries import check, idle
from data.command.errors import UserError
from data.command.options import chosen_names, entry_options, option
from data.command.registry import OR_OWN
from data.command.trackers import HELP, NONE, check_trackers
from data.command.values import require_positive, require_seed
from data.counts import parse_counts
from data.manifest import DTYPES
from data.sources.source_options import DATASET_HELP, SourceOptions
from negatives_gen.signals import SIGNALS
from negatives_gen.strategies import STRATEGIES, job_settings
from negatives_gen.strategies.base import SAMPLE

LOG_FORMATS = ("text", "json")


@dataclass
class RunOptions:
    """How a job runs, which does not decide what it makes."""

    trust_remote_code: bool = option(
        False, "run Python code that comes with a model (true only if you trust it); signals may refuse it"
    )
    num_engines: int | None = option(None, "vLLM engines (default: one per GPU, or one on CPUs)")
    engine: dict[str, Any] = option(
        {}, "any argument of vLLM's LLM but data_parallel_size, untouched: --engine.tensor_parallel_size 2"
    )
    stall_timeout: float = option(
        14400.0,
        "end if no shard begins, ends or gets further in a stage for so many seconds, and name what stands still "
        "(0: never)",
        metavar="SECONDS",
    )
    log_format: str = option(
        "text",
        "text for people, or json for clusters: progress, log and errors as one JSON object a line (what stays text: "
        "errors in the command line itself, and with --verbose what Ray and vLLM print)",
        metavar="FORMAT",
    )
    report_to: list[str] = option([NONE], HELP, metavar="NAME")
    verbose: bool = option(
        False,
        "show what vLLM, Ray and other libraries print, which else goes to OUT/_job/log until the set is finished",
    )
    push_to_hub: str | None = option(
        None,
        "hub data set to upload the finished set to, e.g. me/my-negatives; a new one is public unless its owner's "
        "settings on the hub say otherwise",
        metavar="REPO",
    )

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        require_positive(self, "num_engines")
        if self.engine.get("data_parallel_size", 1) != 1:  # their GPUs would be in no plan (job/resources.py)
            raise UserError(
                f"--engine.data_parallel_size {self.engine['data_parallel_size']}: engines side by side are asked for "
                "by --num_engines. Leave it out."
            )
        check_trackers(self.report_to)
        if not 0 <= self.stall_timeout < float("inf"):
            raise UserError(f"--stall_timeout must be 0 (never) or more seconds, got {self.stall_timeout}.")
        if self.log_format not in LOG_FORMATS:
            raise UserError(f"--log_format must be text or json, got '{self.log_format}'.")

    def refuse_idle_engine(self, strategies: Collection[str], done: str) -> None:
        """Raise UserError for options of an engine that is not started, as none of these strategies samples.

        Args:
            done: see `idle_option`.
        """
        given = "engine.*" if self.engine else "" if self.num_engines is None else "num_engines"
        if given and not sampling(strategies):
            raise idle_option(given, sampling(STRATEGIES.names()), done)


@dataclass
class GenerateConfig(SourceOptions, RunOptions):
    """What to generate, from what, and where to."""

    model: str = option(
        None, "reference model: a directory or hub id (safetensors, with its tokenizer)", required=True, metavar="PATH"
    )
    dataset: str = option(None, DATASET_HELP, required=True, metavar="PATH")
    out: str = option(None, "directory or URL (s3://, gs://) of the negative set", metavar="DIR", required=True)
    sampler: str | None = option(
        None,
        "model that samples (default: the reference): one of the same tokenizer, such as a smaller, distilled or "
        "quantised one, or a LoRA adapter of the reference",
        metavar="PATH",
    )
    split: str = option("all", "train, test or all: groups of those rows, each of which says its half", metavar="HALF")
    limit: int | None = option(None, "read only the first so many examples of the split")
    streaming: bool = option(
        False,
        "read the data set as a stream in its own order, to its end or --limit before an engine starts; "
        "its examples lie under --out until the set is finished",
    )
    max_length: int | None = option(None, "prompt and response in tokens, at most (default: the model's context)")
    scorer_dtype: str = option(
        "float32",
        "in what the reference scores: float32, bfloat16 or float16; train in the same, see --dtype there",
        metavar="DTYPE",
    )
    groups_per_shard: int = option(512, "examples per shard, the unit of work, of resume and of retry")
    seed: int = option(0, "seed of everything that is drawn")
    strategies: list[str] = option(
        ["an=11"],
        "negatives per group: "
        + "; ".join(f"{name} {STRATEGIES.load(name).summary}" for name in STRATEGIES.names())
        + f"; {OR_OWN}",
        metavar="NAME=N",
    )
    strategy_options: dict[str, Any] = entry_options(
        STRATEGIES, chosen_by="strategies", help="how the strategies make negatives"
    )
    signals: list[str] = option(
        ["embedding"],
        "ranking signals, the first is the default: "
        + "; ".join(f"{name} {SIGNALS.load(name).summary}" for name in SIGNALS.names())
        + f"; {OR_OWN}",
        metavar="NAME",
    )
    signal_options: dict[str, Any] = entry_options(
        SIGNALS, chosen_by="signals", help="what the ranking signals are computed with"
    )

    def strategy_settings(self) -> dict[str, dict[str, Any]]:
        """Strategy -> count and what else decides its negatives. Raises UserError for a value out of range."""
        counts = strategy_counts(self.strategies)
        return {name: job_settings(name, counts[name], self.strategy_options[name]) for name in sorted(counts)}

    def used_signal_options(self) -> dict[str, Any]:
        """Ranking signal -> its options, the default first. Raises UserError for an unknown or repeated signal."""
        options = {name: self.signal_options[name] for name in signal_names(self.signals)}
        for of_signal in options.values():
            check(of_signal)
        return options

    def check(self) -> None:
        super().check()
        strategies, signals = self.strategy_settings(), self.used_signal_options()
        both = [name for name in strategies.keys() & signals if name not in (SIGNALS.load(name).only_of or ())]
        if both:
            raise UserError(f"'{min(both)}' is the name of a strategy and of a ranking signal. Change one of them.")
        refuse_without_values(strategies, signals)
        self._refuse_idle()
        self._refuse_unread()
        if self.scorer_dtype not in DTYPES:
            raise UserError(f"unknown --scorer_dtype '{self.scorer_dtype}'. Use one of {', '.join(DTYPES)}.")
        require_positive(self, "limit", "max_length", "groups_per_shard")
        require_seed(self.seed)

    def _refuse_unread(self) -> None:
        """What strategies and signals read in a row is there, and what --columns names is read."""
        chosen = [(STRATEGIES, name) for name in self.strategy_settings()]
        chosen += [(SIGNALS, name) for name in self.used_signal_options()]
        reads = {column for registry, name in chosen for column in registry.load(name).reads}
        reader = self.check_source(self.split, reads)
        for registry, name in chosen:
            if lacking := [column for column in registry.load(name).reads if column not in reader.places]:
                raise UserError(
                    f"{registry.kind} '{name}' needs --columns {lacking[0]}=COLUMN: what rows list under that name."
                )

    def _refuse_idle(self) -> None:
        """Options of strategies and signals that are not chosen: who gives one expects it to count."""
        strategies = strategy_counts(self.strategies)
        for key, names in idle(self.strategy_options, strategies).items():
            raise idle_option(key, names, "chosen")
        for key, names in idle(self.signal_options, signal_names(self.signals)).items():
            raise idle_option(key, names, "chosen", by="signals")
        self.refuse_idle_engine(strategies, "chosen")
        if self.sampler is not None and not sampling(strategies):
            raise idle_option("sampler", sampling(STRATEGIES.names()), "chosen")


def sampling(strategies: Collection[str]) -> list[str]:
    """Which of some strategies need an engine."""
    return [name for name in strategies if STRATEGIES.load(name).stage == SAMPLE]


def refuse_without_values(strategies: Collection[str], signals: Collection[str]) -> None:
    """Raise UserError for a ranking signal that no candidate of the strategies would have a value of."""
    for signal in signals:
        only_of = SIGNALS.load(signal).only_of
        if only_of is not None and not set(only_of) & set(strategies):
            raise UserError(
                f"ranking signal '{signal}' has values for negatives of {', '.join(only_of)} alone, and no "
                f"'{only_of[0]}' is chosen. Choose other --signals, or add it to --strategies."
            )


def idle_option(key: str, entries: Sequence[str], done: str, by: str = "strategies") -> UserError:
    """The error of an option that nothing has which is made.

    Args:
        entries: that have it.
        done: what none of them is, "chosen" or "added".
        by: the option that would do it.
    """
    spoken = f"{key.partition('.')[0]}.*" if "." in key else key
    names = " or ".join(f"'{name}'" for name in entries)
    return UserError(f"--{spoken} would change nothing: no {names} is {done}. Leave it out, or add some by --{by}.")


def strategy_counts(chosen: Sequence[str]) -> dict[str, int]:
    """Strategy -> number of negatives, of ["an=4", "my.module:NAME=3"]. Raises UserError."""
    return parse_counts(chosen, "--strategies", STRATEGIES.name)


def signal_names(chosen: Sequence[str]) -> list[str]:
    """What the chosen ranking signals are called in a set. Raises UserError for an unknown or repeated one."""
    names = [SIGNALS.name(name) for name in chosen_names(chosen)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--signals '{','.join(chosen)}' names '{name}' twice.")
    return names
