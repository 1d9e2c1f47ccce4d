"""`python -m negatives_gen plan`: what a job will make and cost, from a small part of it."""

import copy
import dataclasses
import logging
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from data.command.errors import UserError, exit_on_user_error
from data.command.library_output import library_output_to
from data.command.log import start_logging
from data.command.options import load_config, option
from data.command.terminal import say
from data.command.usage import answered
from data.command.values import require_positive
from data.command.wording import counted, size, whole_duration
from data.manifest import ShardRecord
from data.schema import Group
from negatives_gen.config import GenerateConfig
from negatives_gen.job.inputs import Kind, Shard, ShardSource
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import ASK, SAMPLE, Tools

log = logging.getLogger(__name__)

USAGE = "python -m negatives_gen plan --config FILE.yaml [--rows N] [--tokens_per_second X] [--devices D]"
ABOUT = """
Predict tokens, device-hours, shards and bytes of the job that FILE describes, for any number of rows. A sample of the
rows goes through the real stages on this machine, which measures speed and lengths; with --tokens_per_second no model
is loaded, and a sampled negative is taken to be as long as a ground truth. Nothing is written. Of the job's options
--out, --num_engines, --stall_timeout, --report_to and --push_to_hub are not used.
"""


@dataclass
class PlanConfig(GenerateConfig):
    """The job, and how to predict it."""

    out: str = option("", "not used: nothing is written", metavar="DIR")
    verbose: bool = option(
        False, "show what vLLM and other libraries print, which else goes to a temporary file, named where a plan fails"
    )
    rows: int | None = option(None, "predict for so many rows (default: those of the recipe)")
    sample: int = option(96, "rows to measure")
    tokens_per_second: float | None = option(None, "sampled tokens per second of one device, instead of measuring")
    devices: int = option(1, "devices that work side by side")

    def check(self) -> None:
        super().check()
        require_positive(self, "rows", "devices")
        if self.sample < 6:
            raise UserError(f"--sample must be at least 6 rows, got {self.sample}.")
        if self.tokens_per_second is not None and self.tokens_per_second <= 0:
            raise UserError(f"--tokens_per_second must be above 0, got {self.tokens_per_second}.")


@dataclass(frozen=True)
class Plan:
    """What a job will make and cost.

    Attributes:
        groups, rejected, shards, bytes: of the set; bytes are those of its shards.
        tokens: "prompt", "response", "negatives" -> tokens in the set; "sampled": of negatives, from the engine.
        requests: to an API.
        device_hours: strategy, "score" or signal -> hours of one device, once it has started; from a given speed,
            those of "sampling" alone.
    """

    rows: int
    groups: int
    rejected: int
    shards: int
    bytes: int
    tokens: dict[str, int]
    requests: int
    device_hours: dict[str, float]


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, PlanConfig, usage=USAGE, about=ABOUT):
        return
    config = load_config(PlanConfig, argv, command="python -m negatives_gen plan")
    start_logging(config.log_format)
    print_plan(predict(config), config.devices)


def predict(config: PlanConfig) -> Plan:
    """Measure a sample and scale it. Raises UserError as `generate` does, and for a stream of unknown length."""
    from negatives_gen.job.job import local_path, make_work

    config.check()
    source = config.open_source(config.dataset, config.split, config.limit, config.streaming, locate=local_path)
    rows = config.rows or source.num_examples or config.limit
    if rows is None:
        raise UserError("a stream does not say how many rows it has: give --rows or --limit.")
    examples = list(islice(source, config.sample))
    if len(examples) < 6:
        raise UserError(
            f"the data set has only {counted(len(examples), 'row')} in this split; a plan needs at least 6."
        )
    asked = {n: s["count"] for n, s in config.strategy_settings().items() if STRATEGIES.load(n).stage == ASK}
    with tempfile.TemporaryDirectory() as folder:
        work = make_work(dataclasses.replace(config, out=folder), source)
        work = dataclasses.replace(work, strategies={n: s for n, s in work.strategies.items() if n not in asked})
        # A part first: it warms up what the whole sample times, and two sizes tell what a shard takes by itself.
        parts = [examples[: len(examples) // 3], examples]
        if config.tokens_per_second is None:
            log.info("measuring %d rows with the real models, which takes a minute or more to load", len(examples))
        with library_output_to(None, "log", verbose=config.verbose):
            records, given = _measure(work, parts, min(rows, config.groups_per_shard), config.tokens_per_second is None)
    return _scale(records, given, rows, config, asked)


@dataclass
class SamplePart:
    """A part of the sample, with the whole sample's pool: a part's own has fewer rows for BN to borrow from."""

    source: ShardSource
    pool: list[Group]

    def load(self, index: int) -> Shard:
        return dataclasses.replace(self.source.load(index), pool=self.pool)

    def kinds(self, index: int, known: Container[Kind]) -> dict[Kind, list[dict[str, str]]]:
        return self.source.kinds(index, known)


def _measure(
    work: Any, parts: Sequence[Sequence[Any]], shard_rows: int, measured: bool
) -> tuple[list[ShardRecord], dict[str, float]]:
    """Records of shards that really were made, one of each part, without Ray; with models only if they are measured.

    Beside them, of each strategy that samples, a group's tokens that were given to the engine instead of sampled.

    Args:
        parts: examples; the last part is the whole sample.
        shard_rows: of the job.
    """
    from data.storage import Folder
    from negatives_gen.job.actors import STAGES, new_row
    from negatives_gen.job.batching import work_on
    from negatives_gen.job.inputs import stage_inputs
    from negatives_gen.job.job import require_usable, try_signals

    shards = []
    for number, part in enumerate(parts):
        folder = Folder(f"{work.writer.folder.path}/{number}")
        writer = copy.copy(work.writer)
        writer.folder = folder
        stage_inputs(writer, part, len(part))
        shards.append(dataclasses.replace(work, writer=writer, source=dataclasses.replace(work.source, folder=folder)))
    require_usable(shards[-1], 1, "the sample")
    try_signals(shards[-1], 1)
    pool = shards[-1].source.load(0).pool
    larger_half = max(Counter(group.split for group in pool).values())
    usable = round(shard_rows * larger_half / len(parts[-1]))
    strategies = {
        name: STRATEGIES.load(name).for_sample(settings, len(pool), usable)
        for name, settings in work.strategies.items()
    }
    shards = [
        dataclasses.replace(shard, strategies=strategies, source=SamplePart(shard.source, pool)) for shard in shards
    ]
    if not measured:
        from data.models import load_tokenizer
        from negatives_gen.verbs.standin import stand_in_components

        rows = [shard.source.load(0) for shard in shards]
        components = stand_in_components(rows, len(load_tokenizer(work.model, work.trust_remote_code)))
        shards = [dataclasses.replace(shard, components=components) for shard in shards]
    stages = [STAGES[name](shards[0]) for name in work.stages]
    manifests = []
    try:
        for shard in shards:
            row = new_row(0)
            for stage in stages:
                stage.work = shard
                row = work_on(stage, row)
            if row["error"]:
                raise UserError(row["error"])
            manifests.append(shard.writer.collect(1))
    finally:
        for stage in stages:
            stage.close()
    small, large = (manifest.shards[0] for manifest in manifests)
    if not 0 < small.rows < large.rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in manifests[-1].counts["rejected_by_reason"].items())
        raise UserError(
            f"a sample of {len(parts[-1])} rows gave {counted(large.rows, 'group')} ({reasons}), too few to predict "
            "from. Give a larger --sample, or ask for fewer negatives."
        )
    tools = Tools(seed=work.seed, context=work.context, tokenizer=None)
    given = {
        name: sum(settings["count"] * STRATEGIES.load(name).given_tokens(g, settings, tools) for g in pool) / len(pool)
        for name, settings in work.strategies.items()
        if STRATEGIES.load(name).stage == SAMPLE
    }
    return [small, large], given


def _scale(
    records: Sequence[ShardRecord], given: dict[str, float], rows: int, config: PlanConfig, asked: dict[str, int]
) -> Plan:
    small, large = records
    groups = round(rows * large.rows / large.rows_read)
    # A shard takes some bytes, and some more for each of its groups.
    per_group = (large.bytes - small.bytes) / (large.rows - small.rows)
    per_shard = max(0.0, large.bytes - per_group * large.rows)
    shards = math.ceil(rows / config.groups_per_shard)

    tokens = {kind: large.tokens[kind] / large.rows for kind in ("prompt", "response", "negatives")}
    strategies = config.strategy_settings()
    candidates = sum(s["count"] for n, s in strategies.items() if n not in asked)
    for name, count in asked.items():
        per_group *= 1 + count / (candidates + 1)  # an answer takes as much as another candidate
        tokens["negatives"] += count * min(tokens["response"], strategies[name].get("max_new_tokens", math.inf))
    sampled = sum(large.tokens.get(name, 0) / large.rows - of_group for name, of_group in given.items())
    if config.tokens_per_second is None:
        hours = {name: seconds / large.rows * groups / 3600 for name, seconds in large.seconds.items()}
    else:
        hours = {"sampling": sampled * groups / config.tokens_per_second / 3600}
    return Plan(
        rows=rows,
        groups=groups,
        rejected=rows - groups,
        shards=shards,
        bytes=round(per_shard * shards + per_group * groups),
        tokens={**{k: round(v * groups) for k, v in tokens.items()}, "sampled": round(sampled * groups)},
        requests=sum(asked.values()) * groups,
        device_hours=hours,
    )


def print_plan(plan: Plan, devices: int) -> None:
    """A line for each prediction."""
    lines = {
        "rows": f"{plan.rows:,}, of which {counted(plan.groups, 'group')} and {plan.rejected:,} rejected",
        "shards": f"{plan.shards:,}, {size(plan.bytes)}",
        **{f"{name} tokens": f"{count:,}" for name, count in plan.tokens.items() if count},
    }
    if plan.requests:
        lines["API requests"] = f"{plan.requests:,}, and repetitions"
    seconds = {name: 3600 * hours for name, hours in plan.device_hours.items()}
    total = sum(seconds.values())
    if total >= 1:
        lines |= {f"device time, {name}": whole_duration(part) for name, part in seconds.items() if part}
    on = "" if devices == 1 or total < 1 else f"; on {devices:,} devices {whole_duration(total / devices)}"
    lines["device time"] = f"{whole_duration(total)} of one device{on}"
    for name, value in lines.items():
        say(f"{name:<24} {value}")
