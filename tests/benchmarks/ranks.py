"""What the ranks of the ground truths cost the scorer: `python -m tests.benchmarks.ranks`.

The same groups, K = 12, Dolly lengths, float32, in turns: log-probabilities alone, as the trainer computes them, and
the scorer's pass with the rank of each token of the first continuation. In CPU seconds of one thread.
"""

import statistics
import time
from collections.abc import Callable

import torch

from tests.benchmarks.dolly import MODEL, dolly_continuations
from tests.benchmarks.extent import extent
from trainer.scoring.packing import lay_out
from trainer.scoring.prepared_model import candidate_logps
from trainer.scoring.scorer import Scorer

GROUPS, ROUNDS = extent((8, 9), (4, 1))


def main() -> None:
    torch.set_num_threads(1)
    groups, scorer = dolly_continuations(24)[:GROUPS], Scorer.load(MODEL)  # 12 responses to choose from at least
    order = sorted(groups, key=lambda group: group.longest)

    @torch.no_grad()
    def alone() -> None:
        for _, batch in lay_out(order, scorer.layout, scorer.row_tokens):
            candidate_logps(scorer.prepared, batch).tolist()

    def with_ranks() -> None:
        scorer.score_and_rank(groups, [True] * len(groups))

    def seconds(call: Callable[[], None]) -> float:
        started = time.process_time()  # of one thread: what else the machine does counts little
        call()
        return time.process_time() - started

    seconds(alone)
    pairs = [(seconds(alone), seconds(with_ranks)) for _ in range(ROUNDS)]
    ratio = statistics.median(ranks / plain for plain, ranks in pairs)
    plain, ranks = (statistics.median(times) for times in zip(*pairs, strict=True))
    share = sum(len(g.continuations[0]) for g in groups) / sum(len(c) for g in groups for c in g.continuations)
    print(f"base-6m, {len(groups)} groups, {100 * share:.0f}% of the tokens are the truths', one thread, median of "
          f"{ROUNDS}")  # fmt: skip
    print(f"| log-probabilities alone | {len(groups) / plain:.2f} groups/s | |")
    print(f"| with the truths' ranks | {len(groups) / ranks:.2f} groups/s | {ratio:.3f} of the time |")


if __name__ == "__main__":
    main()
