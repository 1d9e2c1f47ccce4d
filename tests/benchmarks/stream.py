"""Opening 200,000 groups and streaming through them, and whether steps are alike and full.

`python -m tests.benchmarks.stream`. The set has 402 shards of 480 to 512 groups, K = 12, of Dolly's prompts and
responses under GPT-2's tokenizer; its scores are invented. Eight shards are written, the others are copies of them
under other names: files of their own, to read and to decode. A fresh process opens it and goes through an epoch in
steps of 64 groups as the trainer does, without a model. Then 30 steps of 16 groups train the GPT-2 of
`tests.benchmarks.training`.
"""

import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from tests.benchmarks.extent import extent
from tests.benchmarks.training import LONGEST, ROW_TOKENS, K, _gpt2_tokenizer, arguments, make_model

SHARDS, STEPS, EVERY = extent((402, 30, 100), (16, 3, 20))  # memory is looked at EVERY steps
BATCH = 64
# As rejects leave them: no two alike, so that windows of steps do not end where shards do.
ROWS = (512, 501, 480, 507, 493, 510, 488, 498)
DISTINCT = len(ROWS)


def write_set(out: Path) -> None:
    """SHARDS shards of ROWS groups; a manifest whose hashes are those of no model."""
    from data.schema import Candidate
    from data.sources.prepare import prepare_groups
    from tests.benchmarks.dolly import DOLLY
    from tests.support.read_examples import load_examples

    tokenizer = _gpt2_tokenizer()
    examples = load_examples(DOLLY, "dolly", "train", 2 * sum(ROWS))
    groups = prepare_groups(examples, "dolly", tokenizer, 1024 - LONGEST).groups[: sum(ROWS)]
    draw = random.Random(0)
    responses = [g.response_ids[:LONGEST] for g in groups]
    job = {
        "model": {"name": "none", "weights_sha256": "none", "scorer_dtype": "float32"},
        "tokenizer": {"sha256": "none", "eos_token_id": 0, "chat_template_sha256": None},
        "data": {"name": "dolly", "task": "dolly", "split": "train"},
        "strategies": {"an": {"count": K - 1}},
    }
    writer = NegativeSetWriter(str(out), job, ["embedding"])
    writer.begin()
    for group in groups:
        group.response_ids, group.reference_logp, group.response_embedding = group.response_ids[:LONGEST], -1.0, [1.0]
        group.negatives = [
            Candidate("an", ids, "", "stop", reference_logp=-2.0, similarity={"embedding": draw.random()})
            for ids in draw.sample(responses, K - 1)
        ]
    rest = iter(groups)
    for index, rows in enumerate(ROWS):
        writer.write_shard(index, list(islice(rest, rows)), [], seconds={}, layout="packed")
    for index in range(DISTINCT, SHARDS):
        shutil.copy(out / f"shard-{index % DISTINCT:05d}.parquet", out / f"shard-{index:05d}.parquet")
        record = json.loads((out / f"_job/shard-{index % DISTINCT:05d}.json").read_text())
        record["record"]["file"] = f"shard-{index:05d}.parquet"
        (out / f"_job/shard-{index:05d}.json").write_text(json.dumps(record))
    writer.finish(SHARDS)


def open_set(path: str) -> Any:
    from trainer.groups.dataset import ContrastiveGroups

    return ContrastiveGroups.of([NegativeSet(path)], "train")


def memory() -> float:
    """Resident MiB, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def stream(path: str) -> dict[str, Any]:
    """In a child process: open, and go through an epoch as the trainer's data loader does."""
    from torch.utils.data import DataLoader

    from trainer.groups.dataset import Collator
    from trainer.groups.sampler import StepSampler

    open_set(path)  # what is imported by the first use is not the set's
    started = time.perf_counter()
    dataset = open_set(path)
    sampler = StepSampler(dataset, BATCH)
    opened = time.perf_counter() - started
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=Collator("packed", ROW_TOKENS, ["an"]))
    held, tokens, padding, groups = [memory()], [], 0, []
    started = time.perf_counter()
    for number, passes in enumerate(loader):
        tokens.append(sum(packed.tokens.input_ids.numel() for packed in passes))
        padding += sum(packed.tokens.padding for packed in passes)
        groups.append(sum(packed.num_groups for packed in passes))
        if number % EVERY == EVERY - 1:
            held.append(memory())
    seconds = time.perf_counter() - started
    return {
        "groups": len(dataset), "opened": opened, "held": held, "seconds": seconds, "padding": padding,
        "tokens": tokens, "step_groups": sorted(set(groups[:-1])),
    }  # fmt: skip


def train(path: str) -> dict[str, Any]:
    """In a child process: seconds of 30 steps of 16 groups, and of the waits for the loader within them."""
    from torch.utils.data import DataLoader

    from tests.benchmarks.training import BETA, step_times
    from trainer.arguments import PaperTrainingArguments
    from trainer.trainer import ContrastiveTrainer

    waits: list[float] = []

    class Timed(ContrastiveTrainer):
        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            found = super().get_batch_samples(*args, **kwargs)
            waits.append(time.perf_counter() - started)
            return found

    model = make_model("gpt2")
    with tempfile.TemporaryDirectory() as folder:
        settings = {**arguments(folder), "max_steps": STEPS, "per_device_train_batch_size": 16}
        trainer = Timed(
            model=model, args=PaperTrainingArguments(**settings), train_dataset=open_set(path),
            objective="cpo", beta=BETA, row_tokens=ROW_TOKENS,
        )  # fmt: skip
        trainer._checked_start = True  # its random weights are no reference
        assert isinstance(trainer.get_train_dataloader(), DataLoader)
        seconds = step_times(trainer)
    return {"seconds": seconds, "waits": waits}


def child(name: str, path: Path) -> dict[str, Any]:
    words = [sys.executable, "-m", "tests.benchmarks.stream", name, str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def spread(values: list[float]) -> float:
    return float(np.percentile(values, 95) / np.percentile(values, 50))


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps({"stream": stream, "train": train}[sys.argv[1]](sys.argv[2])))
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "set"
        write_set(path)
        size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
        found = child("stream", path)
        held = found["held"]
        print(f"| {found['groups']} groups, {size:.0f} MiB | opened in {found['opened']:.2f} s |", flush=True)
        print(
            f"| resident memory | {held[0]:.0f} MiB opened; {held[1]:.0f} after {EVERY * BATCH:,} groups, "
            f"{max(held):.0f} at most, {held[-1]:.0f} at the end |"
        )
        speed = found["groups"] / found["seconds"]
        print(f"| reading, choosing, packing, one process | {speed:.0f} groups/s, {sum(found['tokens'])} tokens |")
        print(f"| padding | {found['padding'] / sum(found['tokens']):.4f} |")
        print(f"| groups per step of {BATCH} | {found['step_groups']} |")
        print(f"| tokens per step, p95 / p50 | {spread(found['tokens'][:-1]):.3f} |", flush=True)
        steps = child("train", path)
        share = sum(steps["waits"]) / sum(steps["seconds"])
        print(f"| seconds per step of 16 groups, p95 / p50 | {spread(steps['seconds']):.3f} |")
        print(f"| share of a step that waits for the loader | {share:.5f} |")


if __name__ == "__main__":
    main()
