"""How full 1,024 slots are, by simulation: `python -m tests.benchmarks.slots`.

This machine cannot run so many sequences at a time. Simulated are shards of 512 groups x 11 samples with the lengths of
Dolly's responses (base-6m's tokens, cut at 256), of which one in thirty must be drawn again; a step takes a + b x
(sequences that run), fitted to the steps of a real engine here. Rules are those of `negatives_gen.job.batching` and
`pipeline.shards_in_flight`; beside them one call for all prompts, and one call for each shard and round of redraws.
"""

import heapq
import itertools
import random
import time
from collections.abc import Callable

import numpy as np

from negatives_gen.job.batching import FILLINGS
from negatives_gen.models.engine import Engine, Request
from tests.benchmarks.dolly import MODEL, dolly_groups
from tests.benchmarks.extent import extent

GROUPS, N, SHARDS, SLOTS, LONGEST = extent((512, 11, 12, 1024, 256), (32, 11, 3, 64, 32))
AGAIN = 1 / 30


def step_times() -> tuple[float, float]:
    """Seconds of a step, and of each sequence in it, of a real engine whose batch thins out."""
    engine = Engine(MODEL, options={"num_gpu_blocks_override": 1024})
    for number, group in enumerate(dolly_groups(extent(256, 16))):
        engine.start(str(number), Request(group.prompt_ids[-64:], 1, 50, 1.0, extent(128, 16), 0))
    running, seconds = list[int](), list[float]()
    while engine.unfinished:
        started = time.perf_counter()
        engine.step()
        running.append(engine.running or 0)
        seconds.append(time.perf_counter() - started)
    per_sequence, per_step = np.polyfit(running[8:], seconds[8:], 1)  # behind the prompts
    return float(per_step), float(per_sequence)


class Simulation:
    """An engine's slots over time.

    Args:
        lengths: draws the length of a sample in tokens.
        at_once: shards in flight at most.
        gated: the next shard begins only while there is less to do than fills the slots twice.
        rounds: redraws wait until all of a shard's requests have ended.
        again: redraws are made at all.
    """

    def __init__(
        self, lengths: Callable[[], int], *, at_once: int, gated: bool = True, rounds: bool = False, again: bool = True
    ):
        self.lengths, self.at_once, self.gated, self.rounds, self.again = lengths, at_once, gated, rounds, again
        self.draw = random.Random(1)
        self.waiting: list[tuple[int, int, int]] = []  # shard, number, group
        self.lacks: dict[int, int] = {}  # group -> sequences that have not ended
        self.open: dict[int, int] = {}  # shard -> requests that have not ended
        self.later: dict[int, list[tuple[int, int]]] = {}  # shard -> group and samples of its next round
        self.sizes: dict[int, int] = {}  # number of a request -> its samples
        self.numbers = itertools.count()

    def ask(self, shard: int, group: int, samples: int) -> None:
        number = next(self.numbers)
        self.sizes[number] = samples
        self.open[shard] = self.open.get(shard, 0) + 1
        heapq.heappush(self.waiting, (shard, number, group))

    def run(self, per_step: float, per_sequence: float) -> tuple[float, float]:
        """Tokens per second, and the mean share of the slots that were filled."""
        left = np.zeros(SLOTS, int)
        of: list[tuple[int, int]] = [(0, 0)] * SLOTS
        ready: list[tuple[int, int]] = []  # sequences of started requests that wait for a slot
        next_shard = tokens = steps = 0
        seconds = 0.0
        while True:
            backlog = sum(self.sizes[number] for _, number, _ in self.waiting) + len(ready) + int((left > 0).sum())
            while next_shard < SHARDS and len(self.open) < self.at_once:
                if self.gated and self.open and backlog >= FILLINGS * SLOTS:
                    break
                for group in range(GROUPS):
                    self.ask(next_shard, next_shard * GROUPS + group, N)
                next_shard, backlog = next_shard + 1, backlog + GROUPS * N
            free = np.flatnonzero(left == 0)
            for slot in free:
                if not ready and self.waiting:
                    shard, number, group = heapq.heappop(self.waiting)
                    samples = self.sizes.pop(number)
                    self.lacks[group] = samples
                    ready = [(shard, group)] * samples
                if not ready:
                    break
                of[slot], left[slot] = ready.pop(), self.lengths()
            running = int((left > 0).sum())
            if not running:
                return tokens / seconds, tokens / (steps * SLOTS)
            ending = np.flatnonzero(left == 1)
            left[left > 0] -= 1
            tokens, steps, seconds = tokens + running, steps + 1, seconds + per_step + per_sequence * running
            for slot in ending:
                self._end(*of[slot])

    def _end(self, shard: int, group: int) -> None:
        """A sequence of a group has ended."""
        self.lacks[group] -= 1
        if self.lacks[group]:
            return
        missing = sum(self.draw.random() < AGAIN for _ in range(N)) if self.again else 0
        if missing and self.rounds:
            self.later.setdefault(shard, []).append((group, missing))
        elif missing:
            self.ask(shard, group, missing)
        self.open[shard] -= 1
        if not self.open[shard]:
            for later, samples in self.later.pop(shard, []):
                self.ask(shard, later, samples)
            if not self.open[shard]:
                del self.open[shard]


def main() -> None:
    per_step, per_sequence = step_times()
    known = [min(LONGEST, len(group.response_ids)) for group in dolly_groups(extent(2000, 100))]
    in_flight = 2 + -(-2 * FILLINGS * SLOTS // (GROUPS * N))
    ways = {
        "one call for all prompts": {"at_once": SHARDS, "gated": False, "again": False},
        f"at most {in_flight} shards in flight": {"at_once": in_flight},
        "one call for each shard and round": {"at_once": 1, "rounds": True},
    }
    print(
        f"{SHARDS} shards of {GROUPS} x {N} samples, {np.mean(known):.0f} tokens on average, {SLOTS} slots; a step "
        f"takes {1000 * per_step:.1f} ms + {1000 * per_sequence:.3f} ms a sequence"
    )
    base = 0.0
    for name, way in ways.items():
        lengths = random.Random(0)
        speed, filled = Simulation(lambda lengths=lengths: lengths.choice(known), **way).run(per_step, per_sequence)
        base = base or speed
        print(f"| {name} | {speed:.0f} tokens/s | {speed / base:.3f} x | slots filled {filled:.1%} |")


if __name__ == "__main__":
    main()
