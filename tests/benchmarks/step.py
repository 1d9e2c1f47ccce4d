"""Where a step goes, `python -m tests.benchmarks.step gpt2`: forward and backward of 32 groups by tokens per row.

The groups and models of `tests.benchmarks.training`; each size in a process of its own, so that its peak memory is its
own. Then tokens and FLOP per group against the limit, each token once forward and backward, and a profile of 16 groups.
"""

import resource
import subprocess
import sys
import time
from typing import Any

from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.extent import extent
from tests.benchmarks.training import BETA, ROW_TOKENS, make_groups, make_model
from trainer.groups.dataset import Collator, TrainingGroup
from trainer.monitor.utilisation import ModelFlop
from trainer.objectives.losses import cpo_loss
from trainer.scoring.prepared_model import candidate_logps, prepare_model

SIZES = extent((512, 1024, 2048, 4096, 8192), (512, 1024))
GROUPS = extent(32, 12)


def step(prepared: Any, groups: list[TrainingGroup], row_tokens: int) -> None:
    for packed in Collator(prepared.layout, row_tokens, ["an"])(groups):
        logps = candidate_logps(prepared, packed.tokens)
        cpo_loss(logps, packed.reference_logps, beta=BETA, mask=packed.tokens.mask).backward()


def against_the_limit(prepared: Any, groups: list[TrainingGroup], seconds: float) -> None:
    """Tokens and FLOP per group, packed, and if each token of prefix and continuations were there just once."""
    flop, number = ModelFlop.of(prepared.model), len(groups)
    passes = [packed.tokens for packed in Collator(prepared.layout, ROW_TOKENS, ["an"])(groups)]
    once = sum(len(g.tokens.prefix) + sum(map(len, g.tokens.continuations)) for g in groups)
    positions = sum(tokens.input_ids.numel() for tokens in passes)
    targets = sum(len(tokens.target_ids) for tokens in passes)
    least = 3 * flop.forward(once, targets)
    ours = 3 * flop.forward(positions, targets) + flop.forward(0, targets)  # logits are computed twice
    print(f"| a group | {positions / number:.0f} tokens packed | {once / number:.0f} of prefix and continuations | "
          f"{positions / once:.3f} x |")  # fmt: skip
    print(f"| a group | {ours / number / 1e9:.1f} GFLOP, logits twice | {least / number / 1e9:.1f} each token once | "
          f"{ours / least:.3f} x |")  # fmt: skip
    print(f"| reached | {ours / seconds / 1e9:.1f} GFLOP/s | |", flush=True)


def main() -> None:
    kind, *size = sys.argv[1:] or ["gpt2"]
    model = make_model(kind).train()
    prepared = prepare_model(model)
    if not size:
        for row_tokens in SIZES:
            subprocess.run([sys.executable, "-m", "tests.benchmarks.step", kind, str(row_tokens)], check=True)
        groups = make_groups(GROUPS // 2)
        step(prepared, groups, ROW_TOKENS)
        started = time.perf_counter()
        step(prepared, groups, ROW_TOKENS)
        against_the_limit(prepared, groups, time.perf_counter() - started)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            step(prepared, groups, ROW_TOKENS)
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=60))
        return
    groups = make_groups(GROUPS)
    step(prepared, groups[:2], int(size[0]))
    started = time.perf_counter()
    step(prepared, groups, int(size[0]))
    elapsed = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {size[0]} tokens a row | {elapsed:.1f} s | {memory:.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
