"""The scorer against a padded one-sequence-per-candidate scorer, K = 12, Dolly lengths.

`python -m tests.benchmarks.scorer`. All score the same groups with the same model in float32; the padded one gets the
best of several batch sizes, once in the order of the data as TRL computes its reference log-probabilities, and once
sorted by length over all groups, which leaves next to no padding. Their log-probabilities are compared.
"""

import statistics
import time

import torch
from transformers import AutoModelForCausalLM

from tests.benchmarks.dolly import MODEL, dolly_continuations
from tests.benchmarks.extent import extent
from trainer.scoring.continuations import Continuations
from trainer.scoring.scorer import Scorer

GROUPS, ROUNDS, BATCHES = extent((48, 3, (4, 8, 16, 32)), (16, 1, (8,)))


@torch.no_grad()
def padded_scores(model, groups: list[Continuations], batch: int, by_length: bool = True) -> list[list[float]]:
    """The scores of an ordinary script: right-padded rows, logits of the whole row, log-softmax, gather."""
    rows = [(g, k, [*group.prefix, *c]) for g, group in enumerate(groups) for k, c in enumerate(group.continuations)]
    if by_length:
        rows.sort(key=lambda row: len(row[2]))
    scores = [[0.0] * len(group.continuations) for group in groups]
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        width = max(len(ids) for _, _, ids in part)
        ids = torch.tensor([row + [0] * (width - len(row)) for _, _, row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for _, _, row in part])
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        logps = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        for (g, k, row), values in zip(part, logps, strict=True):
            scores[g][k] = values[len(groups[g].prefix) - 1 : len(row) - 1].sum().item()
    return scores


def main() -> None:
    groups = dolly_continuations(GROUPS)
    scorer = Scorer.load(MODEL)
    plain = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    expected = {batch: padded_scores(plain, groups[:8], batch) for batch in BATCHES}

    def timed(call) -> tuple[float, list[list[float]]]:
        started = time.perf_counter()
        result = call()
        return time.perf_counter() - started, result

    def best_batch(by_length: bool) -> int:
        return min(expected, key=lambda batch: timed(lambda: padded_scores(plain, groups[:16], batch, by_length))[0])

    best, unsorted = best_batch(True), best_batch(False)
    ours, theirs, in_order, packed, padded = [], [], [], [], []
    for _ in range(ROUNDS):
        seconds, packed = timed(lambda: scorer.score(groups))
        ours.append(len(groups) / seconds)
        seconds, padded = timed(lambda: padded_scores(plain, groups, best))
        theirs.append(len(groups) / seconds)
        in_order.append(len(groups) / timed(lambda: padded_scores(plain, groups, unsorted, by_length=False))[0])
    gap = max(abs(a - b) for x, y in zip(packed, padded, strict=True) for a, b in zip(x, y, strict=True))
    prefix = statistics.mean(len(g.prefix) for g in groups)
    length = statistics.mean(len(c) for g in groups for c in g.continuations)
    print(f"base-6m, {len(groups)} groups, K = 12, mean prefix {prefix:.0f}, mean continuation {length:.0f} tokens, "
          f"{torch.get_num_threads()} thread(s), median of {ROUNDS}; largest difference {gap:.1e}")  # fmt: skip
    fast, slow = statistics.median(ours), statistics.median(theirs)
    print(f"| packed scorer | {fast:.2f} groups/s | |")
    plainly = statistics.median(in_order)
    print(f"| padded, in order, batches of {unsorted} | {plainly:.2f} groups/s | packed is {fast / plainly:.2f} x |")
    print(f"| padded, sorted, batches of {best} | {slow:.2f} groups/s | packed is {fast / slow:.2f} x |")


if __name__ == "__main__":
    main()
