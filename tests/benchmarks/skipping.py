"""What `--skip_below` saves: `python -m tests.benchmarks.skipping`.

Dolly, sets with an=11 (K = 12), beta 5, float32. Three pairs of reference and set: base-6m after some steps of
next-token prediction on Dolly, as in a real run; base-6m as it is, whose samples are soon told from the ground truths;
and harder negatives, each seen once: short rows, to which the reference's samples end by themselves. Each run is a
process of its own on the same groups in the same order from the same start, once with and once without skipping: cpo
for 300 steps of 4 groups, and for fewer where it is expected to save little, cpo-rank (every place of the order is
contested) and an=4:hard. Groups per second of the steps up to 100 and of those behind them, and the losses beside each
other: both runs see the same groups in a step, so the difference is the mean of the steps' differences, and beside it
stands the standard error of that mean, as if steps were independent. `harder` as the only word runs the third alone.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.dolly import DOLLY, MODEL
from tests.benchmarks.extent import extent
from tests.benchmarks.reuse import timed
from tests.benchmarks.training import ROW_TOKENS, step_times

ROWS, NEW_TOKENS, EARLY, STEPS, FEWER = extent((450, 48, 100, 300, 120), (24, 8, 2, 4, 4))
# The harder set: rows of at most so many characters, samples of at most so many tokens, and no group seen again.
SHORT, LONGER, ONCE = extent((400, 96, 1250), (400, 16, 24))
STEP, BELOW, RATE = 4, 0.01, 1e-5
MLE_STEPS = extent(80, 1)  # of 16, for the reference
Run = tuple[str, str, int]  # objective, --use, steps
RUNS: tuple[Run, ...] = (("cpo", "an=11", STEPS), ("cpo-rank", "an=11", FEWER), ("cpo", "an=4:hard", FEWER))
WARM_UP = extent(5, 1)  # steps that no speed is taken of


def train(reference: str, shards: str, objective: str, use: str, steps: str, skipping: str) -> dict[str, Any]:
    """Seconds and losses of each step, and the shares that were skipped."""
    from transformers import AutoModelForCausalLM, PrinterCallback

    from data.shards import NegativeSet
    from trainer.arguments import PaperTrainingArguments
    from trainer.groups.dataset import ContrastiveGroups
    from trainer.trainer import ContrastiveTrainer

    model = AutoModelForCausalLM.from_pretrained(reference, dtype="float32")
    groups = ContrastiveGroups.of([NegativeSet(shards)], "train", use)
    with tempfile.TemporaryDirectory() as folder:
        arguments = PaperTrainingArguments(
            output_dir=folder, use_cpu=True, save_strategy="no", report_to="none", max_steps=int(steps),
            logging_steps=1, disable_tqdm=True, learning_rate=RATE, lr_scheduler_type="constant",
            per_device_train_batch_size=STEP,
        )  # fmt: skip
        trainer = ContrastiveTrainer(
            model=model, args=arguments, train_dataset=groups,
            objective=objective, beta=5.0, row_tokens=ROW_TOKENS,
            skip_below=BELOW if skipping == "skipping" else None,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        seconds = step_times(trainer)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    found = {name: [float(log[name]) for log in logs if name in log] for name in ("loss", *SKIPPED)}
    return {"seconds": seconds, **found}


SKIPPED = ("skipped/candidates", "skipped/tokens", "skipped/groups")


def run(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.skipping", "--run", *words], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def speed(found: dict[str, Any], steps: slice) -> float:
    """Groups per second of some steps."""
    seconds = found["seconds"][steps]
    return STEP * len(seconds) / sum(seconds)


def report(objective: str, use: str, full: dict[str, Any], less: dict[str, Any]) -> None:
    steps = len(full["seconds"])
    for first, last in ((1, EARLY), (EARLY + 1, steps)):
        window, timed_ones = slice(first - 1, last), slice(max(first - 1, WARM_UP), last)
        slow, fast = speed(full, timed_ones), speed(less, timed_ones)
        losses, others = full["loss"][window], less["loss"][window]
        differences = [other - loss for other, loss in zip(others, losses, strict=True)]
        difference, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
        skipped = ", ".join(f"{statistics.mean(less[name][window]):.0%} of {name.split('/')[1]}" for name in SKIPPED)
        print(f"| {objective}, {use}, steps {first} to {last} | {slow:.2f} | {fast:.2f} | {fast / slow:.2f} x | "
              f"{statistics.mean(losses):.3f} | {statistics.mean(others):.3f} | {difference:+.3f} ({error:.3f}) | "
              f"{skipped} |", flush=True)  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        print(json.dumps(train(*sys.argv[2:])))
        return
    with tempfile.TemporaryDirectory() as name:
        reference = Path(name) / "reference"
        timed("trainer.run", {
            "objective": "mle", "model": MODEL, "dataset": DOLLY, "task": "dolly", "max_steps": MLE_STEPS,
            "per_device_train_batch_size": 16, "learning_rate": 1e-4, "save_strategy": "no", "output_dir": reference,
        })  # fmt: skip
        spoken = f"base-6m after {MLE_STEPS} steps of 16 on Dolly"
        if sys.argv[1:] != ["harder"]:
            compare(str(reference), spoken, DOLLY, ROWS, NEW_TOKENS, RUNS, Path(name) / "set")
            compare(MODEL, "base-6m", DOLLY, ROWS, NEW_TOKENS, RUNS, Path(name) / "other")
        short = Path(name) / "short.jsonl"
        write_short(short)
        spoken = f"{spoken}, rows of at most {SHORT} characters"
        compare(str(reference), spoken, str(short), ONCE, LONGER, RUNS[:1], Path(name) / "harder")


def write_short(path: Path) -> None:
    """Dolly's rows whose texts have at most SHORT characters together."""
    with Path(DOLLY).open(encoding="utf-8") as lines, path.open("w", encoding="utf-8") as out:
        for line in lines:
            row = json.loads(line)
            if sum(len(row[column]) for column in ("instruction", "context", "response")) <= SHORT:
                out.write(line)


def compare(
    reference: str, spoken: str, dataset: str, rows: int, new_tokens: int, runs: Sequence[Run], shards: Path
) -> None:
    """Make a set of a reference's own samples, and train on it with and without skipping."""
    timed("negatives_gen", {
        "model": reference, "dataset": dataset, "task": "dolly", "limit": rows, "groups_per_shard": 64,
        "strategies": "an=11", "max_new_tokens": new_tokens, "embedder": "reference", "out": shards,
    })  # fmt: skip
    groups = json.loads((shards / "manifest.json").read_text())["counts"]["rows_written"]
    print(f"{spoken}, {groups} groups, {STEP} a step, beta 5, learning rate {RATE:g}, --skip_below {BELOW}")
    print("| | groups/s | skipping | | loss | skipping | difference (standard error) | skipped |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for objective, use, steps in runs:
        words = reference, str(shards), objective, use, str(steps)
        report(objective, use, run(*words, "full"), run(*words, "skipping"))


if __name__ == "__main__":
    main()
