"""The stages that Ray Data runs as actors: sample, ask, score. A row is the number of a shard, then the whole shard."""

import dataclasses
import pickle
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.command.errors import UserError, first_line
from data.command.log import start_worker_logging
from data.finite import LOOK, require_finite
from data.manifest import shard_name
from data.models import context_option, load_tokenizer
from data.set_writer import NegativeSetWriter
from negatives_gen.job.answers import kept_answers
from negatives_gen.job.attempts import SetAside, attempt, loading_stage
from negatives_gen.job.inputs import SPENT, Shard, ShardSource
from negatives_gen.models.engine import Engine
from negatives_gen.models.loading import load_scorer
from negatives_gen.signals import SIGNALS, Reference, Signal, load_signals
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import ASK, SAMPLE, SCORE, Strategy, Tools

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

    def finish(self, index: int, shard: Shard) -> dict[str, Any]:
        """Pass the shard on, once the stage's strategies have run."""
        return {"payload": pickle.dumps(shard)}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["error"] or row["aside"]:
            return row
        index = row["shard"]
        try:
            if self.failure is not None:
                raise self.failure
            with attempt(self.work.writer, index, self.name) as tell:
                self.tools = dataclasses.replace(self.tools, tell=tell)
                shard = pickle.loads(row["payload"]) if row["payload"] else self.work.source.load(index)
                self._make_negatives(index, shard)
                return {**new_row(index), **self.finish(index, shard)}
        except UserError as error:
            return {**new_row(index), "error": str(error)}
        except SetAside as aside:
            return {**new_row(index), "aside": str(aside)}
        except Exception as error:
            said = f"{shard_name(index)}, stage '{self.name}': {type(error).__name__}: {first_line(error)}"
            return {**new_row(index), "error": said, "trace": traceback.format_exc()}

    def _make_negatives(self, index: int, shard: Shard) -> None:
        for name, settings in self.work.strategies.items():
            strategy = STRATEGIES.load(name)
            if strategy.stage == self.name:
                started = time.perf_counter()
                short = strategy.add(shard.tried_by(strategy), shard.pool, settings, self.tools)
                shard.set_aside(name, short)
                _require_served(strategy, settings, shard)
                require_finite(shard.pool, f"strategy '{name}'", LOOK)
                shard.seconds[name] = time.perf_counter() - started


def _require_served(strategy: Strategy, settings: dict[str, Any], shard: Shard) -> None:
    """Raise UserError if a group has not as many negatives of a strategy as it was asked for, and was not given up."""
    for group in shard.groups:
        if missing := strategy.missing(group, settings):
            count = settings["count"]
            why = ", and did not say why" if missing > 0 else ""
            returned = "what cannot be served is returned" if missing > 0 else "it stops when a group lacks none"
            raise UserError(
                f"strategy '{strategy.name}' left group '{group.id}' with {count - missing} of {count} negatives{why}. "
                f"Correct its `add`: {returned}."
            )


class SampleStage(Stage):
    """The stage of strategies that sample from the reference model; it holds an engine."""

    name = SAMPLE

    def lend(self) -> dict[str, Any]:
        work = self.work
        code = {"trust_remote_code": True} if work.trust_remote_code else {}
        options = {**code, **context_option(work.model, work.context), **work.engine_options}
        self.engine = CheckedEngine(work.components.engine(work.model, seed=work.seed, options=options))
        return {"sampler": self.engine}

    def _make_negatives(self, index: int, shard: Shard) -> None:
        self.engine.asked = self.engine.answered = 0
        super()._make_negatives(index, shard)
        if self.engine.asked and not self.engine.answered:
            raise UserError(
                f"the engine gave not one token for the {self.engine.asked} prompts that it was asked. Check the "
                "model's weights, and the engine's options and log."
            )


class CheckedEngine:
    """An engine that counts.

    Attributes:
        asked: prompts.
        answered: samples that have tokens.
    """

    def __init__(self, engine: Any):
        self.engine = engine
        self.asked = self.answered = 0

    def sample(self, prompts: Any, **request: Any) -> list[list[Any]]:
        """What the engine samples, counted; arguments and errors as of `negatives_gen.models.engine.Engine.sample`."""
        drawn = self.engine.sample(prompts, **request)
        self.asked += len(prompts)
        self.answered += sum(bool(sample.ids) for samples in drawn for sample in samples)
        return drawn


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
            signal.add(shard.groups)
            require_finite(shard.groups, f"ranking signal '{signal.name}'", LOOK)
            shard.seconds[signal.name] = time.perf_counter() - started
        record = self.work.writer.write_shard(
            index,
            shard.groups,
            shard.rejects,
            seconds=shard.seconds,
            layout=self.scorer.layout,
            truncated=shard.truncated,
        )
        spent = {f"api_{what}": shard.spent[what] for what in SPENT}
        return {"rows": record.rows, "rejected": record.rows_rejected, "tokens": record.tokens["negatives"], **spent}

    def _score(self, shard: Shard) -> None:
        """Reference log-probabilities of every continuation that lacks one."""
        from trainer.scoring.continuations import Continuations

        wanting = []
        for group in shard.groups:
            candidates = [c for c in group.negatives if c.reference_logp is None]
            truth = [group] if group.reference_logp is None else []
            if truth or candidates:
                wanting.append((group, truth + candidates))
        for start in range(0, len(wanting), SCORED_AT_A_TIME):
            part = wanting[start : start + SCORED_AT_A_TIME]
            scores = self.scorer.score(
                [
                    Continuations(group.prompt_ids, [c.response_ids if c is group else c.ids for c in continuations])
                    for group, continuations in part
                ]
            )
            for (_, continuations), logps in zip(part, scores, strict=True):
                for continuation, logp in zip(continuations, logps, strict=True):
                    continuation.reference_logp = logp
            self.tools.tell(start + len(part), len(wanting))


STAGES: dict[str, type[Stage]] = {stage.name: stage for stage in (SampleStage, AskStage, ScoreStage)}
