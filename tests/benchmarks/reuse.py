"""What a second experiment on a negative set costs, against the first: `python -m tests.benchmarks.reuse`.

base-6m on Dolly, an=11, one epoch of training. The first experiment makes the set (Ray, vLLM, scores, similarities) and
trains cpo on it; the second trains cpo-rank on the same shards. All three are the commands a user types, with their
starts; the training's log says that there is no reference forward in it.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.dolly import DOLLY, MODEL
from tests.benchmarks.extent import extent

ROWS = extent(512, 64)


def timed(module: str, options: dict[str, object]) -> float:
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        shards = Path(name) / "set"
        generate = timed("negatives_gen", {
            "model": MODEL, "dataset": DOLLY, "task": "dolly", "limit": ROWS, "groups_per_shard": 64,
            "strategies": "an=11", "max_new_tokens": 64, "embedder": "reference", "out": shards,
        })  # fmt: skip
        groups = json.loads((shards / "manifest.json").read_text())["counts"]["rows_written"]
        options = {
            "shards": shards, "model": MODEL, "num_train_epochs": 1, "per_device_train_batch_size": 16,
            "use_cpu": "true", "save_strategy": "no", "report_to": "none",
        }  # fmt: skip
        cpo = timed("trainer.run", {**options, "objective": "cpo", "output_dir": Path(name) / "cpo"})
        second = timed("trainer.run", {**options, "objective": "cpo-rank", "output_dir": Path(name) / "cpo-rank"})
    first = generate + cpo
    print(f"base-6m, {groups} Dolly groups, an=11, one epoch, wall time with starts")
    print(f"| first experiment | {first:.0f} s: set {generate:.0f} s, cpo {cpo:.0f} s |")
    print(f"| second experiment, cpo-rank on the same set | {second:.0f} s: saves {1 - second / first:.0%} |")


if __name__ == "__main__":
    main()
