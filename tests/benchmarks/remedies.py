"""What each remedy does: `python -m tests.benchmarks.remedies`.

The embedded world: a small Llama trained on its questions is the reference, an=11 of 320 groups the negatives, half of
them held out. Two things go wrong there, a table each: the set is learned by heart, and the loss blows up, since the
step is too large. Per row one run with the command that a user types; the tables are read from the runs' logs, and
correct answers to held-out questions are counted by the evaluation.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.extent import extent

ROWS, REFERENCE_STEPS, QUESTIONS = extent((320, 180, 240), (48, 6, 8))
WARM_UP = ["--warmup_steps", "0.2"]  # a fifth of the steps
CLIPPING = ["--max_grad_norm", "0.1"]
BEST = ["--load_best_model_at_end", "true", "--early_stopping_patience", "2", "--save_strategy", "steps"]
# h per token is about a twelfth of h here: 12 times the beta is as strong a contrast.
PER_TOKEN = ["--loss_normalize", "length", "--beta", "60"]
AGAINST_STEPS = {"none": [], "warm-up of a fifth": WARM_UP, "max_grad_norm 0.1": CLIPPING, "beta 1": ["--beta", "1"]}


@dataclass(frozen=True)
class Scenario:
    """Runs of which each differs from the first by a remedy.

    Attributes:
        name: of a folder.
        steps: of each run.
        log, watch: steps between its logs, and between its evaluations of the held-out groups.
        usual: options of all runs; a remedy may name one of them anew.
        remedies: name of a row -> its options.
    """

    name: str
    steps: int
    log: int
    watch: int
    usual: Mapping[str, str]
    remedies: Mapping[str, list[str]]

    def folder(self, remedy: str) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in f"{self.name}-{remedy}")

    def words(self, remedy: str) -> list[str]:
        given = self.remedies[remedy]
        return [word for pair in self.usual.items() if pair[0] not in given for word in pair] + given


BY_HEART = Scenario(
    "by-heart",
    *extent((150, 15, 15), (6, 3, 3)),
    {"--use": "an=11", "--learning_rate": "3e-4"},
    {
        "none": [],
        "an=4": ["--use", "an=4"],
        "an=4:random of 11": ["--use", "an=4:random"],
        "sft_weight 0.5": ["--sft_weight", "0.5"],
        "nca": ["--objective", "nca"],
        "loss_normalize length": ["--loss_normalize", "length"],
        "loss_normalize length, beta 60": PER_TOKEN,
        "early stopping": [*BEST, "--save_steps", str(extent(15, 3))],
        "max_grad_norm 0.1": CLIPPING,
        "warm-up of a fifth": WARM_UP,
    },
)
CPO_BLOWS_UP = Scenario(
    "cpo-3e-3",
    *extent((50, 5, 50), (6, 3, 6)),
    {"--use": "an=11", "--learning_rate": "3e-3"},
    {
        **AGAINST_STEPS,
        "learning_rate 1e-3": ["--learning_rate", "1e-3"],
        "learning_rate 3e-4": ["--learning_rate", "3e-4"],
        "nca": ["--objective", "nca"],
        "loss_normalize length, beta 60": PER_TOKEN,
    },
)
RANKING_BLOWS_UP = Scenario(
    "cpo-rank-3e-4",
    *extent((50, 5, 50), (6, 3, 6)),
    {"--use": "an=11", "--learning_rate": "3e-4", "--objective": "cpo-rank"},
    {
        **AGAINST_STEPS,
        "learning_rate 1e-4": ["--learning_rate", "1e-4"],
        "nca": ["--objective", "nca"],
        "loss_normalize length, beta 60": PER_TOKEN,
    },
)
SCENARIOS = BY_HEART, CPO_BLOWS_UP, RANKING_BLOWS_UP


# What a run may say of itself -> the table's word for it; see `trainer.monitor.diagnosis`.
LINES = {
    "the step is too large": "too large",
    "the train groups are decided": "decided",
    "the train ground truths have become less likely": "truths fall",
    "the held-out ground truths have become less likely": "held-out truths fall",
}


def command(module: str, *words: object) -> str:
    """Run a command; what it said on stderr."""
    done = subprocess.run([sys.executable, "-m", module, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stderr


def train(folder: Path, scenario: Scenario, remedy: str) -> str:
    """A run of its own; what it was told, "5: too large, 50: truths fall"."""
    words = scenario.words(remedy)
    heard = command(
        "trainer.run", "--shards", folder / "set", "--model", folder / "reference", "--output_dir",
        folder / scenario.folder(remedy), "--max_steps", scenario.steps, "--per_device_train_batch_size", 16,
        "--logging_steps", scenario.log, "--eval_strategy", "steps", "--eval_steps", scenario.watch,
        "--use_cpu", "true", "--report_to", "none",
        *(() if "--save_strategy" in words else ("--save_strategy", "no")), *words,
    )  # fmt: skip
    found = re.findall(rf"By step (\d+) .*?({'|'.join(LINES)})", heard)
    return ", ".join(f"{step}: {LINES[line]}" for step, line in found)


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
        told = {one.folder(remedy): train(folder, one, remedy) for one in SCENARIOS for remedy in one.remedies}
        words = [word for name in ("reference", *told) for word in ("--model", f"{name}={folder / name}")]
        command(
            "evaluation.run", *words, "--dataset", "facts", "--limit", QUESTIONS, "--decode", "greedy",
            "--max_new_tokens", 32, "--metrics", "correct", "--out", folder / "report",
        )  # fmt: skip
        entries = json.loads((folder / "report" / "report.json").read_text())["measurements"]
        correct = {entry["model"]: entry["mean"] for entry in entries if entry["metric"] == "correct"}
        print(
            f"facts, {ROWS} groups of K = 12, half of them held out, steps of 16, beta 5; the reference answers "
            f"{correct['reference']:.1%} of {QUESTIONS} held-out questions"
        )
        for scenario in SCENARIOS:
            print(f"\n{scenario.name}: {scenario.steps} steps, {' '.join(map(' '.join, scenario.usual.items()))}\n")
            print(
                "| remedy | steps | loss / start, highest | last, train | held-out | truth's log-probability, train | "
                "held-out | decided, train | held-out | shown so far | correct answers | said at step |"
            )
            print("|---|---|---|---|---|---|---|---|---|---|---|---|")
            for remedy in scenario.remedies:
                run = scenario.folder(remedy)
                row = " | ".join(figures(folder / run))
                print(f"| {remedy} | {row} | {correct[run]:.1%} | {told[run]} |", flush=True)


def figures(run: Path) -> list[str]:
    """What the logs say of the model that a run left: with early stopping that of the best held-out loss."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if "eval_loss" in line]
    stopping = "early_stopping" in json.loads((run / "trainer_job.json").read_text())
    watched = min(held_out, key=lambda line: line["eval_loss"]) if stopping else held_out[-1]
    trained = next(line for line in lines if line["step"] == watched["step"] and "loss" in line)
    both = [*zip(*(three(logs, prefix) for logs, prefix in ((trained, ""), (watched, "eval_"))), strict=True)]
    cells = [f"{value:{form}}" for values, form in zip(both, (".2f", "+.2f", ".0%"), strict=True) for value in values]
    # Step 1's log is of 16 groups, before any step.
    highest = max(three(line)[0] for line in lines if "loss" in line and line["step"] > 1)
    return [str(watched["step"]), f"{highest:.2f}", *cells, f"{trained['contrast/repeats']:.1f}"]


def three(logs: dict[str, Any], prefix: str = "") -> tuple[float, float, float]:
    """What a log holds: the loss over its start, the change of the truth's log-probability, the decided share."""
    loss = logs.get(f"{prefix}loss/contrast", logs[f"{prefix}loss"])
    return (
        loss / logs[f"{prefix}start/contrast"],
        logs[f"{prefix}logps/ground_truth_change"],
        logs[f"{prefix}contrast/decided"],
    )


if __name__ == "__main__":
    main()
