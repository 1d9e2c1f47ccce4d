"""The stages that Ray Data runs as actors: sample, ask, score. A row is the number of a shard, then the whole shard."""

import asyncio
import dataclasses
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from data.command.errors import UserError, first_line
from data.command.log import start_worker_logging
from data.finite import LOOK, require_finite
from data.manifest import shard_name
from data.models import context_option, load_tokenizer
from data.set_writer import NegativeSetWriter
from negatives_gen.job.answers import kept_answers
from negatives_gen.job.attempts import SetAside, Tell, attempt, loading_stage, suspect
from negatives_gen.job.batching import FILLINGS, Admission, EngineLoop, ShardSampler
from negatives_gen.job.inputs import SPENT, Shard, ShardSource
from negatives_gen.job.reachable import in_support
from negatives_gen.job.sampling_model import SamplingModel
from negatives_gen.models.engine import Engine
from negatives_gen.models.loading import load_scorer
from negatives_gen.signals import SIGNALS, Reference, Signal, load_signals
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import ASK, SAMPLE, SCORE, SampledStrategy, Strategy, Tools

# Groups, so that progress can be told within a shard. Larger ones would be packed hardly better.
SCORED_AT_A_TIME = 128


@dataclass(frozen=True)
class Components:
    """The heavy parts; another engine, or a stub with a fault or a scale this machine lacks, takes their place here."""

    engine: Callable[..., Any] = Engine
    scorer: Callable[..., Any] = load_scorer
    signals: Callable[[Mapping[str, Any], Reference], list[Signal]] = load_signals


@dataclass(frozen=True)
class Work:
    """All that the stages need to know, sent to every actor once.

    Attributes:
        model: directory of the reference model.
        sampler: what samples; None: the reference.
        present: strategy -> negatives of it that every group has already, in a set that is extended.
        strategies: those that have negatives to make, with their settings.
        signals: the ranking signals with their options, the default first.
        outside: import paths of strategies and of signals that are not built in: a worker knows their names only once
            it has imported them.
        context: longest prefix + continuation in tokens.
    """

    model: str
    source: ShardSource
    strategies: dict[str, dict[str, Any]]
    signals: dict[str, Any]
    writer: NegativeSetWriter
    context: int
    seed: int
    dtype: str
    engine_options: dict[str, Any]
    trust_remote_code: bool = False
    sampler: SamplingModel | None = None
    present: dict[str, int] = field(default_factory=dict)
    outside: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    components: Components = field(default_factory=Components)

    @property
    def stages(self) -> list[str]:
        """The stages that there is work for, in their order; the last one scores and writes."""
        needed = {STRATEGIES.load(name).stage for name in self.strategies}
        return [stage for stage in (SAMPLE, ASK) if stage in needed] + [SCORE]


def new_row(index: int) -> dict[str, Any]:
    """What the first stage gets of a shard.

    `error` ends the job, with the `trace` in the log; `aside` says why this shard is not made; `payload` is the shard
    on its way to the next stage.
    """
    return {"shard": index, "error": "", "trace": "", "aside": "", "payload": b""}


class Stage:
    """An actor of the pipeline whose errors reach the driver as rows with an `error`.

    Two habits of Ray Data make this necessary: it restarts an actor whose constructor raises, without end and without
    a word to the driver; and what a row raises comes with pages of its own stack trace.
    """

    name: str
    failure: Exception | None = None

    def __init__(self, work: Work):
        self.work = work
        start_worker_logging()
        try:
            for registry, paths in zip((STRATEGIES, SIGNALS), work.outside, strict=True):
                for path in paths:
                    registry.load(path)
            with loading_stage(work.writer, self.name):
                tokenizer = load_tokenizer(work.model, work.trust_remote_code)
                self.tools = Tools(work.seed, work.context, tokenizer, **self.lend())
        except Exception as error:
            self.failure = error

    def lend(self) -> dict[str, Any]:
        """Load what the stage lends to its strategies, once per actor."""
        return {}

    def close(self) -> None:
        """End what would not end with the stage itself. Of an actor it is not called: its process ends."""

    def finish(self, index: int, shard: Shard) -> dict[str, Any]:
        """Pass the shard on, once the stage's strategies have run."""
        return {"payload": pickle.dumps(shard)}

    def __call__(self, row: dict[str, Any]) -> Any:
        if row["error"] or row["aside"]:
            return row
        index = row["shard"]
        with self._told(index) as result:
            self._require_loaded()
            with attempt(self.work.writer, index, self.name) as tell:
                self.tools = dataclasses.replace(self.tools, tell=tell)
                shard = self._shard(row)
                self._make_negatives(index, shard)
                result |= self.finish(index, shard)
        return result

    def _require_loaded(self) -> None:
        if self.failure is not None:
            raise self.failure

    @contextmanager
    def _told(self, index: int) -> Iterator[dict[str, Any]]:
        """The row to fill in for a shard; what the block raises becomes an entry of it."""
        result = new_row(index)
        try:
            yield result
        except UserError as error:
            result["error"] = str(error)
        except SetAside as aside:
            result["aside"] = str(aside)
        except Exception as error:
            result["error"] = f"{shard_name(index)}, stage '{self.name}': {type(error).__name__}: {first_line(error)}"
            result["trace"] = traceback.format_exc()

    def _shard(self, row: dict[str, Any]) -> Shard:
        return pickle.loads(row["payload"]) if row["payload"] else self.work.source.load(row["shard"])

    def _mine(self) -> Iterator[tuple[Strategy, dict[str, Any]]]:
        """The strategies of this stage with their settings, in their order."""
        for name, settings in self.work.strategies.items():
            if (strategy := STRATEGIES.load(name)).stage == self.name:
                yield strategy, settings

    def _make_negatives(self, index: int, shard: Shard) -> None:
        for strategy, settings in self._mine():
            started = time.perf_counter()
            tools = dataclasses.replace(self.tools, tell=partial(self.tools.tell, strategy=strategy.name))
            short = strategy.add(shard.tried_by(strategy), shard.pool, settings, tools)
            _served(strategy, settings, shard, short)
            shard.seconds[strategy.name] = time.perf_counter() - started


def _served(strategy: Strategy, settings: dict[str, Any], shard: Shard, short: dict[str, str]) -> None:
    """Set aside the groups that a strategy could not serve. Raises UserError if one of the others lacks negatives."""
    shard.set_aside(strategy.name, short)
    _require_served(strategy, settings, shard)
    require_finite(shard.pool, f"strategy '{strategy.name}'", LOOK)


def _require_served(strategy: Strategy, settings: dict[str, Any], shard: Shard) -> None:
    """Raise UserError if a group has not as many negatives of a strategy as it was asked for, and was not given up."""
    for group in shard.groups:
        missing, count = strategy.missing(group, settings), settings["count"]
        if missing < 0 or strategy.is_short(group, settings):
            why = ", and did not say why" if missing > 0 else ""
            returned = "what cannot be served is returned" if missing > 0 else "it stops when a group lacks none"
            raise UserError(
                f"strategy '{strategy.name}' left group '{group.id}' with {count - missing} of {count} negatives{why}. "
                f"Correct its `add`: {returned}."
            )


class SampleStage(Stage):
    """The stage of strategies that sample; it holds an engine, and several shards in flight.

    Ray Data calls it for the next shard while earlier ones wait for their samples.
    """

    name = SAMPLE

    def lend(self) -> dict[str, Any]:
        work = self.work
        code = {"trust_remote_code": True} if work.trust_remote_code else {}
        sampler = work.sampler or SamplingModel(work.model)
        options = {**code, **context_option(sampler.model, work.context), **work.engine_options}
        self.engine = EngineLoop(
            lambda: work.components.engine(sampler.model, options=options, **sampler.engine_arguments)
        )
        self.admission = Admission(lambda: self.engine.backlog, FILLINGS * self.engine.slots)
        return {}

    def close(self) -> None:
        if self.failure is None:
            self.engine.close()

    async def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["error"] or row["aside"]:
            return row
        index = row["shard"]
        with self._told(index) as result:
            self._require_loaded()
            # A shard whose worker has died is sampled alone, or it would take others with it.
            async with self.admission.turn(alone=suspect(self.work.writer, index, self.name)) as turn:
                with attempt(self.work.writer, index, self.name) as tell:
                    # In a thread: while it loads and is tokenised, the others in flight ask and tell. One at a time
                    # does so, since the next one begins once it has asked.
                    shard = await asyncio.to_thread(self._shard, row)
                    await self._sample(shard, turn, tell)
                    result |= self.finish(index, shard)
        return result

    async def _sample(self, shard: Shard, turn: int, tell: Tell) -> None:
        sampler = ShardSampler(self.engine, self.admission, turn)
        for strategy, settings in self._mine():
            assert isinstance(strategy, SampledStrategy)
            tools = dataclasses.replace(self.tools, sampler=sampler, tell=partial(tell, strategy=strategy.name))
            seconds = sampler.clock()
            short = await strategy.sample_all(shard.tried_by(strategy), settings, tools)
            _served(strategy, settings, shard, short)
            shard.seconds[strategy.name] = seconds()
        if sampler.asked and not sampler.answered:
            raise UserError(
                f"the engine gave not one token for the {sampler.asked} prompts that it was asked. Check the "
                "model's weights, and the engine's options and log."
            )
        shard.occupancy = sampler.occupancy
        shard.slot_seconds = self.engine.slot_seconds() if sampler.asked else None


class AskStage(Stage):
    """The stage of strategies that wait for an API; it holds no model of ours."""

    name = ASK

    def _make_negatives(self, index: int, shard: Shard) -> None:
        lent = self.tools
        with kept_answers(self.work.writer, index) as answers:
            self.tools = dataclasses.replace(lent, answers=answers, spent=shard.spent)
            super()._make_negatives(index, shard)
        self.tools = lent


class ScoreStage(Stage):
    """The last stage: all other strategies, reference log-probabilities, ranking signals; then the shard is written."""

    name = SCORE

    def lend(self) -> dict[str, Any]:
        work = self.work
        self.scorer = work.components.scorer(work.model, dtype=work.dtype, trust_remote_code=work.trust_remote_code)
        self.signals = work.components.signals(work.signals, Reference(work.model, work.trust_remote_code))
        whole = work.writer.job["strategies"]  # of a set that is extended also those that it has already
        self.samplers = {name: whole[name] for name in whole if STRATEGIES.load(name).stage == SAMPLE}
        # The ranks are the reference's: of another sampler lengths and settings alone say what it could have said.
        self.ranks_count = "sampler" not in work.writer.job
        return {"predictor": self.scorer}

    def finish(self, index: int, shard: Shard) -> dict[str, Any]:
        for group in shard.groups:
            group.negatives.sort(key=lambda c: c.strategy)  # stable: within a strategy as they were made
        started = time.perf_counter()
        self._score(shard)
        require_finite(shard.groups, f"the reference model, in {self.work.dtype},", LOOK)
        shard.seconds["score"] = time.perf_counter() - started
        for signal in self.signals:
            started = time.perf_counter()
            signal.tell = partial(self.tools.tell, signal=signal.name)
            signal.pass_over(shard.groups)
            signal.add(shard.groups)
            require_finite(shard.groups, f"ranking signal '{signal.name}'", LOOK)
            # A signal of a strategy's own has its name.
            shard.seconds[signal.name] = shard.seconds.get(signal.name, 0.0) + time.perf_counter() - started
        record = self.work.writer.write_shard(
            index,
            shard.groups,
            shard.rejects,
            seconds=shard.seconds,
            layout=self.scorer.layout,
            truncated=shard.truncated,
            occupancy=shard.occupancy,
            slot_seconds=shard.slot_seconds,
        )
        spent = {f"api_{what}": shard.spent[what] for what in SPENT}
        written = {"rows": record.rows, "rejected": record.rows_rejected, "tokens": record.tokens["negatives"]}
        return {**written, "occupancy": record.occupancy, **spent}

    def _score(self, shard: Shard) -> None:
        """Reference log-probabilities of every continuation that lacks one, and what was in reach of the sampler."""
        from trainer.scoring.continuations import Continuations

        wanting, unknown = [], []
        for group in shard.groups:
            if group.in_support is None:
                group.in_support = in_support(group, None, self.samplers, self.tools)
            asked = group.in_support is None and bool(self.samplers) and self.ranks_count
            candidates = [c for c in group.negatives if c.reference_logp is None]
            truth = [group] if group.reference_logp is None or asked else []
            if truth or candidates:
                wanting.append((group, truth + candidates))
                unknown.append(asked)
        for start in range(0, len(wanting), SCORED_AT_A_TIME):
            part = slice(start, start + SCORED_AT_A_TIME)
            scores, ranks = self.scorer.score_and_rank(
                [
                    Continuations(group.prompt_ids, [c.response_ids if c is group else c.ids for c in continuations])
                    for group, continuations in wanting[part]
                ],
                unknown[part],
            )
            for (group, continuations), logps, rank in zip(wanting[part], scores, ranks, strict=True):
                for continuation, logp in zip(continuations, logps, strict=True):
                    if continuation.reference_logp is None:
                        continuation.reference_logp = logp
                if rank is not None:
                    group.in_support = in_support(group, rank, self.samplers, self.tools)
            self.tools.tell(start + len(wanting[part]), len(wanting))


STAGES: dict[str, type[Stage]] = {stage.name: stage for stage in (SampleStage, AskStage, ScoreStage)}
