"""What a strategy is: a rule that gives each group its negatives, from a seed and the tools of the stage it runs in."""

import asyncio
import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Protocol

from data.command.entries import check
from data.command.errors import UserError
from data.command.options import NoOptions, option
from data.command.registry import meaningless
from data.counts import least_of
from data.schema import Candidate, Group

# Draws per missing candidate before a group is given up; a draw may be empty, the ground truth, or a repetition.
MAX_ROUNDS = 8

# The stages a strategy can run in, in their order: with the engine, with an API and no model of ours, with the scorer.
STAGE_ORDER = SAMPLE, ASK, SCORE = "sample", "ask", "score"


class Sampler(Protocol):
    """What AN needs of an engine: `negatives_gen.job.batching.ShardSampler.sample`."""

    async def sample(
        self, prompt: Sequence[int], *, n: int, top_k: int, temperature: float, max_tokens: int, seed: int
    ) -> list[Any]: ...


class Predictor(Protocol):
    """What MN needs of a scorer: `trainer.scoring.scorer.Scorer.draw`."""

    def draw(
        self,
        groups: Sequence[Any],
        uniforms: Sequence[Any],
        *,
        never: Sequence[int],
        on_pass: Callable[[int], None] = ...,
    ) -> list[Any]: ...


class Answers(Protocol):
    """What UN needs of what keeps an API's answers: `negatives_gen.job.answers.KeptAnswers`."""

    def find(self, key: str) -> Any: ...

    def keep(self, key: str, answer: Any) -> None: ...


@dataclass(frozen=True)
class Tools:
    """What a stage lends to the strategies that run in it.

    Attributes:
        seed: the job's seed.
        context: longest prefix + continuation in tokens.
        tokenizer: the reference model's.
        sampler: in the sample stage only.
        predictor: in the score stage only.
        answers: in the ask stage of a job, those of the shard that it works on.
        spent: in the ask stage, counts what the API takes, see `negatives_gen.job.inputs.Shard`.
        tell: says how many of how many groups (in the ask stage: answers) of the shard a strategy is done with, and
            with which `part` of its work, where it goes over them more than once; as often as it likes.
    """

    seed: int
    context: int
    tokenizer: Any
    sampler: Sampler | None = None
    predictor: Predictor | None = None
    answers: Answers | None = None
    spent: Counter[str] = dataclasses.field(default_factory=Counter)
    tell: Callable[..., None] = lambda done, of, part="": None


class Strategy(ABC):
    """One way to make negatives.

    What it makes may depend on its settings, the job's seed and the rows of the shard only, and the first n of n + m
    candidates must be the n it makes when asked for n (sampled ones aside): so a set can be extended.

    Attributes:
        name: of the module, of the column `strategy`, of `--strategies NAME=COUNT`.
        summary: half a line for --help.
        stage: SAMPLE, ASK or SCORE.
        reaches_more: whether it is given part of a ground truth, so that it may reach more than `supports` says.
        edits_truth: its negatives are the ground truth, changed: `inspect` shows where.
        Options: a frozen dataclass of its options (`data.command.options.option`), whose `check` raises UserError for a
            value out of range. They are options of the commands, and stand in the manifest.
        reads: names of `--columns` that it needs beside the task's; then a finished set, which does not hold what they
            say, cannot be extended by it.
    """

    name: str
    summary: str
    stage: str = SCORE
    reads: tuple[str, ...] = ()
    reaches_more: bool = False
    edits_truth: bool = False
    Options: ClassVar[type] = NoOptions

    @property
    def turn(self) -> tuple[int, str]:
        """When the strategy runs among those of a job: the least first."""
        return STAGE_ORDER.index(self.stage), self.name

    def settings(self, options: Any) -> dict[str, Any]:
        """The options (an instance of `Options`), checked, JSON-like, for the manifest and for `add`.

        Under "least" they may say how few candidates a group is kept with; else it needs as many as are asked for.

        Raises:
            UserError: a value is out of range.
        """
        check(options)
        return dataclasses.asdict(options)

    def for_sample(self, settings: dict[str, Any], rows: int, shard_rows: int) -> dict[str, Any]:
        """The settings with which few rows make of each what many would, for a plan that measures a sample.

        Args:
            settings: with the count.
            rows: usable rows of the sample.
            shard_rows: usable rows of a shard of the job, of the half (train, test) that has more.

        Raises:
            UserError: a shard's rows are too few for the count.
        """
        return settings

    def for_job(self, settings: dict[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
        """The settings as the stages need them, which may run in another directory: paths are absolute.

        Args:
            job: as the manifest says it.

        Raises:
            UserError: the settings do not go with this job. No work has been done then.
        """
        return settings

    @abstractmethod
    def add(
        self, groups: Sequence[Group], pool: Sequence[Group], settings: dict[str, Any], tools: Tools
    ) -> dict[str, str]:
        """Append candidates to each group, in place, until it has settings["count"] of this strategy, or "least".

        Args:
            groups: those that want negatives; some may have a few of this strategy already, see `Shard.tried_by`.
            pool: all usable rows of the shard in the order of their ids: `groups` and those that another strategy has
                given up. What depends on other rows must depend on the pool, or it would depend on that strategy.

        Returns:
            Group id -> why it cannot have as many ("3 of 11 after 8 draws"); such a group is rejected.
        """

    def supports(self, group: Group, rank: int | None, settings: dict[str, Any], tools: Tools) -> bool | None:
        """Whether what is sampled could have been the group's ground truth, its end included.

        Args:
            rank: the largest number of tokens that the sampler's model finds strictly likelier than one of the ground
                truth's; None where it is not known.

        Returns:
            None where that is not known, or nothing is sampled.
        """
        return None

    def left_out(self, group: Group) -> Mapping[str, int]:
        """Reason -> how many candidates the group's row lists that cannot be used; of those that are made none are."""
        return {}

    def given_tokens(self, group: Group, settings: dict[str, Any], tools: Tools) -> float:
        """Tokens of one of the group's candidates that the engine is given and does not sample, about, for a plan."""
        return 0.0

    def missing(self, group: Group, settings: dict[str, Any]) -> int:
        """How many candidates of this strategy a group still lacks."""
        return settings["count"] - sum(c.strategy == self.name for c in group.negatives)

    def is_short(self, group: Group, settings: dict[str, Any]) -> bool:
        """Whether a group has fewer candidates of this strategy than it may be kept with."""
        return settings["count"] - self.missing(group, settings) < least_of(settings)

    def fill(self, group: Group, candidates: Iterable[Candidate], settings: dict[str, Any]) -> int:
        """Take candidates, in their order, until the group lacks none; those whose text is not new are passed over.

        Returns:
            How many the group still lacks.
        """
        novelty, missing = Novelty(group, self.name), max(0, self.missing(group, settings))
        taken = list(islice(filter(novelty.take, candidates), missing))
        group.negatives += taken
        return missing - len(taken)


class GroupStrategy(Strategy):
    """A strategy that makes the candidates of a group out of that group alone: it says which there are.

    Attributes:
        scarce: why a group may have too few, for its reject; see `why_scarce`.
    """

    scarce: str = "no other candidate has a new text"

    @abstractmethod
    def candidates(self, group: Group, settings: dict[str, Any], tools: Tools) -> Iterator[Candidate]:
        """Candidates in the order in which they are to be taken; made one by one, and no more than are wanted."""

    def add(
        self, groups: Sequence[Group], pool: Sequence[Group], settings: dict[str, Any], tools: Tools
    ) -> dict[str, str]:
        short: dict[str, str] = {}
        for group in groups:
            missing, count = self.fill(group, self.candidates(group, settings, tools), settings), settings["count"]
            if self.is_short(group, settings):
                short[group.id] = f"{count - missing} of {count}: {self.why_scarce(group)}"
        return short

    def why_scarce(self, group: Group) -> str:
        """Why this group has too few."""
        return self.scarce


@dataclass(frozen=True)
class SamplingOptions:
    """How continuations are sampled."""

    top_k: int = option(50, "sample among the k most likely tokens (0: all)")
    temperature: float = option(1.0, "sampling temperature")
    max_new_tokens: int = option(256, "length of a continuation in tokens, at most")

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        if self.top_k < 0:
            raise UserError(f"--top_k must be 0 (all tokens) or more, got {self.top_k}.")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"--temperature must be above 0, got {self.temperature}: negatives are sampled.")
        if self.max_new_tokens < 1:
            raise UserError(f"--max_new_tokens must be at least 1, got {self.max_new_tokens}.")


def longest(group: Group, settings: dict[str, Any], tools: Tools) -> int:
    """Tokens of a group's longest continuation, its end included."""
    return min(settings["max_new_tokens"], tools.context - len(group.prompt_ids))


class SampledStrategy(Strategy):
    """A strategy that samples, group by group: the engine works on all groups of several shards at once.

    What is not new is drawn again, for MAX_ROUNDS, as soon as a group's draws are there: it joins the running batch.
    """

    stage = SAMPLE

    @abstractmethod
    async def draw(
        self, group: Group, number: int, round_number: int, settings: dict[str, Any], tools: Tools
    ) -> list[Candidate]:
        """Candidates in the order in which they are to be taken, by `await tools.sampler.sample(...)`.

        Args:
            number: how many.
            round_number: from 0; the draws of each round must be others, and those of a group that has some already:
                a seed depends on this number and on how many the group has.
        """

    async def sample(self, group: Group, settings: dict[str, Any], tools: Tools) -> str:
        """Append candidates to a group until it lacks none. Returns why it cannot have as many; "" if it has."""
        novelty, count = Novelty(group, self.name), settings["count"]
        for round_number in range(MAX_ROUNDS):
            missing = self.missing(group, settings)
            if missing <= 0:
                return ""
            # What it lacks; if that drew too few new texts, ever more: the prompt is computed once anyway.
            number = min(count, missing << round_number)
            for candidate in await self.draw(group, number, round_number, settings, tools):
                if self.missing(group, settings) > 0 and novelty.take(candidate):
                    group.negatives.append(candidate)
        missing = self.missing(group, settings)
        return f"{count - missing} of {count} distinct samples after {MAX_ROUNDS} draws" if missing > 0 else ""

    def supports(self, group: Group, rank: int | None, settings: dict[str, Any], tools: Tools) -> bool | None:
        # The end is sampled like any token and counts towards the limit: a truth of just that length is reached.
        if len(group.response_ids) > longest(group, settings, tools):
            return False
        if settings["top_k"] == 0:
            return True
        # As many as k may be likelier or equal: what ties with the k-th is sampled too.
        return None if rank is None else rank < settings["top_k"]

    def candidate(self, ids: list[int], text: str, sample: Any) -> Candidate:
        """A candidate with what the engine says of the sample that it is, or ends with."""
        return Candidate(
            strategy=self.name,
            ids=ids,
            text=text,
            finish_reason=sample.finish_reason,
            seed=sample.seed,
            sampler_logp=sample.logp,
        )

    async def sample_all(self, groups: Sequence[Group], settings: dict[str, Any], tools: Tools) -> dict[str, str]:
        """Append candidates to each group, as `add` does, while others use the same event loop."""
        done = 0

        async def sampled(group: Group) -> str:
            nonlocal done
            reason = await self.sample(group, settings, tools)
            done += 1
            tools.tell(done, len(groups))
            return reason

        tasks = [asyncio.ensure_future(sampled(group)) for group in groups]
        try:
            reasons = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # where one has failed; else they have ended
        return {group.id: reason for group, reason in zip(groups, reasons, strict=True) if reason}

    def add(
        self, groups: Sequence[Group], pool: Sequence[Group], settings: dict[str, Any], tools: Tools
    ) -> dict[str, str]:
        return asyncio.run(self.sample_all(groups, settings, tools))


def fault_of(strategy: Strategy) -> str:
    """What makes a strategy one that no stage would run; "" if nothing."""
    if (strategy.stage == SAMPLE) != isinstance(strategy, SampledStrategy):
        return f"stage '{SAMPLE}' is that of a SampledStrategy, and of nothing else"
    return meaningless("stage", strategy.stage, STAGE_ORDER)


class Novelty:
    """Which texts a group's next candidate must not have: none, its ground truth's, or an earlier one's of a strategy.

    Compared without surrounding white space. Candidates of different strategies may be equal, or what one strategy
    makes would depend on the others.
    """

    def __init__(self, group: Group, strategy: str):
        self.taken = {"", group.response.strip(), *(c.text.strip() for c in group.negatives if c.strategy == strategy)}

    def take(self, candidate: Candidate) -> bool:
        """Whether the candidate is new; if so, the next one of its text is not."""
        text = candidate.text.strip()
        if text in self.taken:
            return False
        self.taken.add(text)
        return True


def derive_seed(*parts: object) -> int:
    """A 64-bit seed that depends on all parts, such as job seed, strategy and group id, and on nothing else."""
    content = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
