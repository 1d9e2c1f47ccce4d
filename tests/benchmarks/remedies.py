"""What each remedy against memorised negatives and too large steps does: `python -m tests.benchmarks.remedies`.

The embedded world: a small Llama trained on its questions is the reference, an=11 of 320 groups the negatives, half of
them held out. Then one run of the same steps at the same learning rate per remedy, with the commands that a user types;
the table is read from their logs, and correct answers to held-out questions are counted by the evaluation.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.extent import extent

ROWS, REFERENCE_STEPS, STEPS, EVERY, QUESTIONS = extent((320, 180, 150, 15, 240), (48, 6, 6, 3, 8))
RATE = "3e-4"
BEST = ["--load_best_model_at_end", "true", "--early_stopping_patience", "2", "--save_strategy", "steps"]
REMEDIES: dict[str, list[str]] = {
    "none": ["--use", "an=11"],
    "an=4": ["--use", "an=4"],
    "an=4:random of 11": ["--use", "an=4:random"],
    "sft_weight 0.5": ["--use", "an=11", "--sft_weight", "0.5"],
    "nca": ["--use", "an=11", "--objective", "nca"],
    "loss_normalize length": ["--use", "an=11", "--loss_normalize", "length"],
    "early stopping": ["--use", "an=11", *BEST, "--save_steps", str(EVERY)],
    "max_grad_norm 0.1, warm-up": ["--use", "an=11", "--max_grad_norm", "0.1", "--warmup_steps", "0.2"],
}


def command(module: str, *words: object) -> float:
    """Run a command; its seconds."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", module, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return time.perf_counter() - began


def train(folder: Path, name: str, *more: str) -> float:
    return command(
        "trainer.run", "--shards", folder / "set", "--model", folder / "reference", "--output_dir", folder / name,
        "--max_steps", STEPS, "--per_device_train_batch_size", 16, "--learning_rate", RATE, "--logging_steps", EVERY,
        "--eval_strategy", "steps", "--eval_steps", EVERY, "--use_cpu", "true", "--report_to", "none",
        *(() if "--save_strategy" in more else ("--save_strategy", "no")), *more,
    )  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command("data.blank", "--out", folder / "blank")
        command(
            "trainer.run", "--objective", "mle", "--from_scratch", "true", "--model", folder / "blank", "--dataset",
            "facts", "--output_dir", folder / "reference", "--max_steps", REFERENCE_STEPS, "--learning_rate", "3e-3",
            "--per_device_train_batch_size", 32, "--lr_scheduler_type", "cosine", "--warmup_steps", 20,
            "--save_strategy", "no", "--use_cpu", "true", "--report_to", "none",
        )  # fmt: skip
        command(
            "negatives_gen", "--model", folder / "reference", "--dataset", "facts", "--limit", ROWS, "--strategies",
            "an=11", "--max_new_tokens", 32, "--embedder", "reference", "--groups_per_shard", 80, "--out",
            folder / "set",
        )  # fmt: skip
        seconds = {remedy: train(folder, _folder(remedy), *words) for remedy, words in REMEDIES.items()}
        models = [("reference", folder / "reference"), *((_folder(one), folder / _folder(one)) for one in REMEDIES)]
        words = [word for name, path in models for word in ("--model", f"{name}={path}")]
        command(
            "evaluation.run", *words, "--dataset", "facts", "--limit", QUESTIONS, "--decode", "greedy",
            "--max_new_tokens", 32, "--metrics", "correct", "--out", folder / "report",
        )  # fmt: skip
        entries = json.loads((folder / "report" / "report.json").read_text())["measurements"]
        correct = {entry["model"]: entry["mean"] for entry in entries if entry["metric"] == "correct"}
        print(
            f"facts, {ROWS} groups of K = 12, half of them held out, {STEPS} steps of 16 at a learning rate of {RATE}, "
            f"beta 5; the reference answers {correct['reference']:.1%} of {QUESTIONS} held-out questions"
        )
        print(
            "| remedy | steps | loss / start, train | held-out | truth's log-probability, train | held-out | decided, "
            "train | held-out | shown so far | correct answers | s |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for remedy in REMEDIES:
            row = " | ".join(figures(folder / _folder(remedy)))
            print(f"| {remedy} | {row} | {correct[_folder(remedy)]:.1%} | {seconds[remedy]:.0f} |", flush=True)


def _folder(remedy: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in remedy)


def figures(run: Path) -> list[str]:
    """What the logs say of the model that a run left: with early stopping that of the best held-out loss."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if "eval_loss" in line]
    stopping = "early_stopping" in json.loads((run / "trainer_job.json").read_text())
    watched = min(held_out, key=lambda line: line["eval_loss"]) if stopping else held_out[-1]
    trained = next(line for line in lines if line["step"] == watched["step"] and "loss" in line)
    both = [*zip(*(pair(logs, prefix) for logs, prefix in ((trained, ""), (watched, "eval_"))), strict=True)]
    cells = [f"{value:{form}}" for values, form in zip(both, (".2f", "+.2f", ".0%"), strict=True) for value in values]
    return [str(watched["step"]), *cells, f"{trained['contrast/repeats']:.1f}"]


def pair(logs: dict[str, Any], prefix: str) -> tuple[float, float, float]:
    """What a log holds: the loss over its start, the change of the truth's log-probability, the decided share."""
    loss = logs.get(f"{prefix}loss/contrast", logs[f"{prefix}loss"])
    return (
        loss / logs[f"{prefix}start/contrast"],
        logs[f"{prefix}logps/ground_truth_change"],
        logs[f"{prefix}contrast/decided"],
    )


if __name__ == "__main__":
    main()
