"""What a negative costs, by how it is made: tokens and passes of the model, and time, side by side in one process.

`python -m tests.benchmarks.negatives`. Groups of Dolly with base-6m in float32; each contestant makes the same number
of negatives of the same groups, in turn, several times. What they are worth to the model stands beside it: their
log-probability per token, that of the ground truths being the first row.
"""

import asyncio
import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from data.models import context_length, load_tokenizer
from data.schema import Group
from negatives_gen.job.batching import Admission, EngineLoop, ShardSampler
from negatives_gen.models.engine import Engine, Request, Sample
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import Tools
from tests.benchmarks.dolly import MODEL, dolly_groups
from tests.benchmarks.extent import extent
from trainer.scoring.continuations import Continuations
from trainer.scoring.scorer import Scorer

GROUPS, COUNT, TURNS = extent((16, 4, 3), (8, 2, 1))


@dataclass
class Contestant:
    """A strategy with its settings, and what it took each time.

    Attributes:
        passes: of the model.
        tokens: in these passes: prompts and what is sampled.
        sampled: of these, what the engine sampled, samples that were passed over too; 0 of MN, which the scorer draws.
        seconds, cpu: of the clock, and of the process on all cores.
    """

    strategy: str
    settings: dict[str, Any]
    passes: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    made: list[Group] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " ".join([self.strategy, *(f"{k} {v}" for k, v in self.settings.items() if k not in SAMPLING)])

    def run(self, groups: Sequence[Group], tools: Tools, seen: "Passes") -> None:
        """Make negatives of fresh copies of the groups."""
        self.made = [dataclasses.replace(group, negatives=[]) for group in groups]
        before = seen.number, seen.tokens, seen.sampled
        started, started_cpu = time.perf_counter(), time.process_time()
        STRATEGIES.load(self.strategy).add(self.made, self.made, {"count": COUNT, **self.settings}, tools)
        self.seconds.append(time.perf_counter() - started)
        self.cpu.append(time.process_time() - started_cpu)
        self.passes.append(seen.number - before[0])
        self.tokens.append(seen.tokens - before[1])
        self.sampled.append(seen.sampled - before[2])


class Passes:
    """Counts a model's forward passes, the tokens in them, and those that an engine sampled."""

    def __init__(self, model: torch.nn.Module):
        self.number = self.tokens = self.sampled = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.number += 1
        self.tokens += kwargs["input_ids"].numel()


class CountedEngine(Engine):
    """An engine whose steps are counted, with the prompts that it is given and the tokens that it samples."""

    def __init__(self, seen: Passes):
        super().__init__(MODEL, options={"num_gpu_blocks_override": 512})
        self.seen = seen

    def start(self, key: str, request: Request) -> None:
        self.seen.tokens += len(request.prompt)
        super().start(key, request)

    def step(self) -> list[tuple[str, list[Sample]]]:
        self.seen.number += 1
        finished = super().step()
        sampled = sum(len(sample.ids) for _, samples in finished for sample in samples)
        self.seen.tokens += sampled
        self.seen.sampled += sampled
        return finished


class LoopSampler:
    """What a shard has of the engine, made anew for each event loop."""

    def __init__(self, loop: EngineLoop):
        self.loop = loop
        self._of: tuple[Any, ShardSampler] | None = None

    async def sample(self, prompt: Sequence[int], **request: Any) -> list[Sample]:
        running = asyncio.get_running_loop()
        if self._of is None or self._of[0] is not running:
            self._of = running, ShardSampler(self.loop, Admission(lambda: 0, 1), 0)
        return await self._of[1].sample(prompt, **request)


SAMPLING = {"top_k": 50, "temperature": 1.0, "max_new_tokens": 256}
CONTESTANTS = [
    *(Contestant("mn", {"mn_share": 0.15, "mn_rounds": rounds}) for rounds in (1, 2, 4)),
    Contestant("an", SAMPLING),
    *(Contestant("rn", {**SAMPLING, "rn_share": share}) for share in ("0.5", "0.1-0.9")),
]


def main() -> None:
    groups, scorer = sorted(dolly_groups(GROUPS), key=lambda group: group.id), Scorer.load(MODEL)
    seen = Passes(scorer.model)
    sampler = LoopSampler(EngineLoop(lambda: CountedEngine(seen)))
    tools = Tools(0, context_length(MODEL), load_tokenizer(MODEL), predictor=scorer, sampler=sampler)
    for turn in range(TURNS):
        for contestant in CONTESTANTS if turn % 2 == 0 else reversed(CONTESTANTS):
            contestant.run(groups, tools, seen)
    lengths = [len(group.response_ids) for group in groups]
    truth = sum(map(sum, scorer.score([Continuations(g.prompt_ids, [g.response_ids]) for g in groups])))
    prompt, response = statistics.mean(len(g.prompt_ids) for g in groups), statistics.mean(lengths)
    print(
        f"base-6m, {len(groups)} groups of Dolly, {COUNT} negatives each, prompts of {prompt:.0f} and ground truths of "
        f"{response:.0f} tokens on average, {torch.get_num_threads()} thread(s), median of {TURNS}"
    )
    print("| per negative | passes | tokens, prompts too | sampled | ms | of the CPU | nats per token |")
    print("|---|---|---|---|---|---|---|")
    print(f"| ground truth | | | | | | {truth / sum(lengths):.2f} |")
    for contestant in CONTESTANTS:
        print(f"| {contestant.name} | {row(contestant, scorer)} |")


def row(contestant: Contestant, scorer: Scorer) -> str:
    """Cost per negative, and log-probability per token."""
    candidates = [candidate.ids for group in contestant.made for candidate in group.negatives]
    per = 1 / len(candidates)
    with_some = [group for group in contestant.made if group.negatives]
    scores = scorer.score([Continuations(g.prompt_ids, [c.ids for c in g.negatives]) for g in with_some])
    return (
        f"{statistics.median(contestant.passes) * per:.2f} | {statistics.median(contestant.tokens) * per:.0f} | "
        f"{statistics.median(contestant.sampled) * per:.0f} | "
        f"{1000 * statistics.median(contestant.seconds) * per:.0f} | "
        f"{1000 * statistics.median(contestant.cpu) * per:.0f} | "
        f"{sum(map(sum, scores)) / sum(map(len, candidates)):.2f}"
    )


if __name__ == "__main__":
    main()
