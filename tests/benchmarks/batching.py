"""Continuous batching over shards against one `LLM.generate` over all prompts of the run, and against shard by shard.

`python -m tests.benchmarks.batching`. base-6m on Dolly, 64 slots, shards that fill them 1.4, 2.75 and 5.5 times. One
process; an engine that vLLM's own loop drives and one that the sampling stage's does, each in a thread of its own; the
order of the contestants changes from round to round. `LLM.generate` runs without seeds, and with one for each request,
as stage 1 does. Tokens are all that were sampled, ramp-up and last drain counted.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data.command.options import make_config
from data.sources.examples import open_source
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import SampleStage, Work, new_row
from negatives_gen.job.batching import ShardSampler
from negatives_gen.job.inputs import stage_inputs
from negatives_gen.job.job import make_work
from negatives_gen.job.pipeline import shards_in_flight
from negatives_gen.models.engine import Engine
from tests.benchmarks.dolly import DOLLY, MODEL
from tests.benchmarks.extent import extent

ROWS, MAX_TOKENS, ROUNDS = extent((96, 48, 3), (32, 8, 1))
N, TOP_K, SLOTS = 11, 50, 64
SIZES = (8, 16, 32)
# Each request of stage 1 has a seed, and vLLM draws for those with a seed one by one.
UNSEEDED, SEEDED = "one LLM.generate", "one LLM.generate, a seed for each request"
ENGINE = {"max_num_seqs": SLOTS, "num_gpu_blocks_override": 512}


class CountedSamplers:
    """The samplers of the shards of a run."""

    def __init__(self) -> None:
        self.made: list[ShardSampler] = []

    def __call__(self, *arguments: Any) -> ShardSampler:
        self.made.append(ShardSampler(*arguments))
        return self.made[-1]


def job_of(folder: Path, size: int) -> tuple[Work, int]:
    """The job with shards of so many groups, staged, and its number of shards."""
    config = make_config(GenerateConfig,
        model=MODEL, dataset=DOLLY, task="dolly", split="train", limit=ROWS, groups_per_shard=size,
        strategies=f"an={N}", max_new_tokens=MAX_TOKENS, out=str(folder / f"{size}"), engine=ENGINE,
        embedder="reference",
    )  # fmt: skip
    source = open_source(config.dataset, config.task, config.split, config.limit)
    work = make_work(config, source)
    work.writer.begin()
    return work, stage_inputs(work.writer, source, size).shards


def main() -> None:
    import negatives_gen.job.actors as actors

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread, asyncio.Runner() as runner:
        jobs = {size: job_of(Path(folder), size) for size in SIZES}
        work, shards = jobs[SIZES[0]]
        stage = SampleStage(work)
        if stage.failure:
            raise stage.failure
        bare_engine = thread.submit(lambda: Engine(MODEL, options=ENGINE)).result()
        prompts = [group.prompt_ids for index in range(shards) for group in work.source.load(index).groups]

        def generate(texts: bool, seeded: bool) -> int:
            from vllm import SamplingParams

            requests = [{"prompt_token_ids": ids} for ids in prompts]
            limits = [min(MAX_TOKENS, work.context - len(ids)) for ids in prompts]
            parameters = [
                SamplingParams(
                    n=N, top_k=TOP_K, max_tokens=limit, logprobs=0, detokenize=texts, seed=number if seeded else None
                )
                for number, limit in enumerate(limits)
            ]
            outputs = bare_engine.llm.generate(requests, parameters, use_tqdm=False)  # type: ignore[arg-type]  # a TypedDict
            return sum(len(c.token_ids) for output in outputs for c in output.outputs)

        def sampled(size: int, at_once: int | None = None) -> int:
            work, shards = jobs[size]
            stage.work, actors.ShardSampler = work, CountedSamplers()  # type: ignore[misc]  # counts in its place

            async def run() -> list[dict[str, Any]]:
                room = asyncio.Semaphore(at_once or shards_in_flight(work, SLOTS))

                async def one(index: int) -> dict[str, Any]:
                    async with room:
                        return await stage(new_row(index))

                return await asyncio.gather(*(one(index) for index in range(shards)))

            errors = [row["error"] + row["trace"] for row in runner.run(run()) if row["error"]]
            assert not errors, errors
            return sum(sampler.tokens for sampler in actors.ShardSampler.made)

        contestants: dict[str, Any] = {
            UNSEEDED: lambda: thread.submit(generate, texts=True, seeded=False).result(),
            f"{UNSEEDED}, without texts": lambda: thread.submit(generate, texts=False, seeded=False).result(),
            SEEDED: lambda: thread.submit(generate, texts=True, seeded=True).result(),
        }
        for size in SIZES:
            contestants[f"shards of {size} ({size * N / SLOTS:.3g} fillings)"] = lambda size=size: sampled(size)
        for size in SIZES:
            contestants[f"shards of {size}, one at a time"] = lambda size=size: sampled(size, 1)
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        for warming in (*list(contestants.values())[:3], contestants[f"shards of {SIZES[0]}, one at a time"]):
            warming()
        for round_number in range(ROUNDS):
            for name in sorted(contestants, reverse=round_number % 2 == 1):
                started = time.perf_counter()
                tokens = contestants[name]()
                speeds[name].append(tokens / (time.perf_counter() - started))
        for work, _ in jobs.values():
            work.writer.end()
    print(f"median tokens/s (range), and ratios to '{UNSEEDED}' and to '{SEEDED}' of the same round")
    print(f"base-6m, {len(prompts)} Dolly prompts, n = {N}, at most {MAX_TOKENS}, {SLOTS} slots, {ROUNDS} rounds")
    for name, values in speeds.items():
        print(
            f"| {name} | {statistics.median(values):.0f} tokens/s ({min(values):.0f} to {max(values):.0f}) | "
            f"{ratio(values, speeds[UNSEEDED])} | {ratio(values, speeds[SEEDED])} |"
        )


def ratio(values: Sequence[float], base: Sequence[float]) -> str:
    """How many times as fast, round by round: the median and the range."""
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    return f"{statistics.median(ratios):.3f} x ({min(ratios):.3f} to {max(ratios):.3f})"


if __name__ == "__main__":
    main()
