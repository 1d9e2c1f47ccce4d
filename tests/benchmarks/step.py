"""Where a step goes, `python -m tests.benchmarks.step gpt2`: forward and backward of 32 groups by tokens per row.

The groups and models of `tests.benchmarks.training`; each size in a process of its own, so that its peak memory is its
own. Then a profile of 16 groups.
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
from trainer.objectives.losses import cpo_loss
from trainer.scoring.prepared_model import candidate_logps, prepare_model

SIZES = extent((512, 1024, 2048, 4096, 8192), (512, 1024))
GROUPS = extent(32, 12)


def step(prepared: Any, groups: list[TrainingGroup], row_tokens: int) -> None:
    for packed in Collator(prepared.layout, row_tokens, ["an"])(groups):
        logps = candidate_logps(prepared, packed.tokens)
        cpo_loss(logps, packed.reference_logps, beta=BETA, mask=packed.tokens.mask).backward()


def main() -> None:
    kind, *size = sys.argv[1:] or ["gpt2"]
    model = make_model(kind).train()
    prepared = prepare_model(model)
    if not size:
        for row_tokens in SIZES:
            subprocess.run([sys.executable, "-m", "tests.benchmarks.step", kind, str(row_tokens)], check=True)
        groups = make_groups(GROUPS // 2)
        step(prepared, groups, ROW_TOKENS)
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
