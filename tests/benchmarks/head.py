"""Seconds of a language model's head, forward and backward: `python -m tests.benchmarks.head`.

1,000 positions, hidden size 256, GPT-2's vocabulary, float32: plain cross-entropy on whole logits, its three matrix
products alone, and ours by size of its chunks.
"""

import time
from collections.abc import Callable

import torch

from tests.benchmarks.extent import extent
from trainer.scoring import head

POSITIONS, REPEATS = extent((1000, 5), (64, 1))
HIDDEN, VOCABULARY = 256, 50257


def seconds(call: Callable[[], object]) -> float:
    """The fastest of several, after one that warms up."""
    call()
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


def main() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(POSITIONS, HIDDEN, requires_grad=True)
    weight = (torch.randn(VOCABULARY, HIDDEN) * 0.02).requires_grad_()
    targets = torch.randint(VOCABULARY, (POSITIONS,))

    def plain() -> None:
        hidden.grad = weight.grad = None
        torch.nn.functional.cross_entropy(hidden @ weight.T, targets).backward()

    @torch.no_grad()
    def products() -> None:
        logits = hidden @ weight.T
        _ = logits @ weight
        _ = logits.T @ hidden

    def ours() -> None:
        hidden.grad = weight.grad = None
        head.token_logps(hidden, weight, targets).sum().backward()

    @torch.no_grad()
    def ours_forward() -> None:
        head.token_logps(hidden, weight, targets)

    print(f"| cross-entropy on whole logits | {seconds(plain):.2f} s |")
    print(f"| its three matrix products | {seconds(products):.2f} s |")
    for power in (20, 21, 22, 23, 24, 25):
        head.CHUNK_ELEMENTS["cpu"] = 1 << power
        print(f"| ours, chunks of 2^{power} logits | {seconds(ours):.2f} s, forward {seconds(ours_forward):.2f} s |")


if __name__ == "__main__":
    main()
