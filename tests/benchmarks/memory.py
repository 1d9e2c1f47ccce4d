"""Predicted and real peak memory of training on a CPU, `python -m tests.benchmarks.memory`: two sizes, both layouts.

Each run is a process of its own, in which the real trainer makes two steps of groups of Dolly's lengths (K = 12)
with AdamW in float32 unless the row says otherwise; prediction is `trainer.sizing.predicted`'s, of the same groups.
Real is the largest resident set (VmHWM) above the one before the model was made, after a tiny run that loads what
libraries load late. glibc is told to keep no freed memory (one arena, blocks of 64 KiB and more mapped by themselves),
else its gaps are measured too.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.dolly import MODEL, dolly_continuations
from tests.benchmarks.extent import extent

STEPS = 2
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
LARGE = {
    "model_type": "llama", "vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 1024, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {**LARGE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
# Size, layout, token budget of a pass, groups a step, and what is asked of transformers and TRL.
LONGEST = {"6 M": 256, "91 M": 128}  # tokens of a response
RUNS: list[tuple[str, str, int, int, dict[str, Any]]] = extent(
    [
        ("6 M", "packed", 4096, 4, {}),
        ("6 M", "padded", 4096, 4, {}),
        ("91 M", "packed", 1024, 1, {}),
        ("91 M", "padded", 1024, 1, {}),
        ("6 M", "packed", 4096, 4, {"gradient_checkpointing": True}),
        ("6 M", "packed", 4096, 4, {"bf16": True}),
        ("91 M", "packed", 1024, 1, {"use_peft": True}),
    ],
    [("6 M", "packed", 1024, 2, {}), ("6 M", "padded", 1024, 2, {})],
)


def run(
    directory: str, from_scratch: bool, layout: str, row_tokens: int, step: int, longest: int, **asked: Any
) -> dict[str, Any]:  # fmt: skip
    """Two real steps of so many groups: real and predicted bytes, the latter by kind.

    Args:
        longest: tokens of a response, at most.
    """
    import gc
    from functools import partial
    from unittest.mock import patch

    from trl import ModelConfig

    from tests.support.in_order import InOrder
    from trainer.arguments import PaperTrainingArguments
    from trainer.groups.dataset import Collator, TrainingGroup
    from trainer.objectives.cpo import OBJECTIVE as CPO
    from trainer.policy import Policy, prepared_policy
    from trainer.sizing.devices import device_of
    from trainer.sizing.first_steps import FirstSteps
    from trainer.sizing.predicted import Case, predict
    from trainer.trainer import ContrastiveTrainer

    dataset = InOrder(
        [
            TrainingGroup(str(n), group, [0.0] * 12, [1.0] * 12, ["bn"] * 11)
            for n, group in enumerate(dolly_continuations(16, longest=longest)[: step * STEPS])
        ]
    )
    adapted = {"use_peft": True, "lora_target_modules": ["all-linear"]} if asked.pop("use_peft", False) else {}
    policy = Policy(Path(directory), ModelConfig(dtype="float32", **adapted), from_scratch, dropout=False)
    options, collate = CPO.Options(beta=5.0), Collator(layout, row_tokens, ["bn"])
    with tempfile.TemporaryDirectory() as folder:
        training = PaperTrainingArguments(
            output_dir=folder, use_cpu=True, save_strategy="no", report_to="none", max_steps=STEPS, disable_tqdm=True,
            per_device_train_batch_size=step, **asked,
        )  # fmt: skip
        gc.collect()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the largest resident set is counted from here
        # The trainer finds out the layout itself; here a model that takes packed rows is to be padded, too.
        with patch("trainer.trainer.prepared_policy", partial(prepared_policy, layout=layout)):
            trainer = ContrastiveTrainer(
                policy.load(), training, train_dataset=dataset, objective=CPO, options=options,
                peft_config=policy.adapter, row_tokens=row_tokens,
            )  # fmt: skip
        trainer._checked_start = True  # its weights are no reference of these scores
        trainer.train()
        real = resident("VmHWM") - before
        case = Case(policy, training, CPO, options, device_of("cpu"))
        steps = FirstSteps.of(dataset, training, 1).laid_out(collate)
        found = predict(case, layout, steps.largest, accumulates=steps.most_passes > 1)
    return {"real": real, "predicted": found.peak, "kinds": found.kinds}


def resident(which: str) -> int:
    """Bytes of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


def with_config(folder: str, settings: dict[str, Any]) -> str:
    """A model directory of a config alone."""
    from transformers import AutoConfig

    AutoConfig.for_model(**settings).save_pretrained(folder)
    return folder


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        size, layout, row_tokens, step, asked = json.loads(sys.argv[2])
        shape = step, LONGEST[size]
        with tempfile.TemporaryDirectory() as tiny, tempfile.TemporaryDirectory() as large:
            run(with_config(tiny, TINY), True, layout, 512, *shape, **asked)
            directory = MODEL if size == "6 M" else with_config(large, LARGE)
            found = run(directory, size != "6 M", layout, row_tokens, *shape, **asked)
        print(json.dumps(found))
        return
    print("| parameters | layout | tokens per pass | groups a step | with | predicted | real | off |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for size, layout, row_tokens, step, asked in RUNS:
        told = json.dumps([size, layout, row_tokens, step, asked])
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.memory", "--run", told],
            capture_output=True, text=True, env={**os.environ, **MALLOC},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"error: {done.stderr[-1000:]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        predicted, real = found["predicted"], found["real"]
        print(
            f"| {size} | {layout} | {row_tokens} | {step} | {', '.join(asked) or '-'} | {predicted / 2**20:.0f} MiB | "
            f"{real / 2**20:.0f} MiB | {predicted / real - 1:+.1%} |", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
