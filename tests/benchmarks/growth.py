"""Ten times the groups: time and driver memory; and deciding what is left in 10,000 finished shards.

`python -m tests.benchmarks.growth` (20,000 rows, then ten times as many). Synthetic rows, stub engine, stub
scorer, stub signal (tests/support/stubs.py): what is measured is reading, staging, passing on, writing and finishing.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data.set_writer import NegativeSetWriter
from tests.benchmarks.extent import extent

SHARD, ROWS, FINISHED = extent((512, 20_000, 10_000), (16, 64, 100))


def run(rows: int, model: Path, folder: Path) -> tuple[float, float]:
    """Seconds and peak MiB of the driver for a job of so many rows."""
    data = folder / f"rows-{rows}.jsonl"
    with data.open("w") as file:
        for i in range(rows):
            file.write(
                json.dumps({"prompt": f"Question {i}: who founded Belada?", "completion": f" Agnes {i}."}) + "\n"
            )
    code = (
        "import resource, sys, time; from tests.support.stubs import main; "
        "t = time.perf_counter(); code = main(sys.argv[1:]);"
        "memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "print('MEASURED', time.perf_counter() - t, memory); sys.exit(code)"
    )
    options = {
        "model": model, "dataset": data, "split": "all", "strategies": "an=3,bn=2", "embedder": "reference",
        "groups_per_shard": SHARD, "out": folder / f"set-{rows}",
    }  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--stub-scorer"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    seconds, mebibytes = done.stdout.split("MEASURED")[1].split()
    return float(seconds), float(mebibytes)


def decide(shards: int, folder: Path) -> float:
    """Seconds until a restarted job knows which of so many finished shards are left."""
    writer = NegativeSetWriter(str(folder / "resume"), {"seed": 0}, ["embedding"])
    writer.begin()
    for index in range(shards):
        writer.write_shard(index, [], [], seconds={}, layout="packed")
    writer.end()
    started = time.perf_counter()
    again = NegativeSetWriter(str(folder / "resume"), {"seed": 0}, ["embedding"])
    again.begin()
    finished = again.finished()
    left = [index for index in range(shards + 1) if index not in finished]
    assert left == [shards]
    return time.perf_counter() - started


def main() -> None:
    from tests.support.tiny import save_tiny_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_tiny_model(folder / "model")
        print(f"| {FINISHED:,} finished shards: deciding what is left | {decide(FINISHED, folder):.2f} s |")
        small, large = run(ROWS, model, folder), run(10 * ROWS, model, folder)
        print(f"| {ROWS} groups | {small[0]:.0f} s | driver {small[1]:.0f} MiB |")
        print(f"| {10 * ROWS} groups | {large[0]:.0f} s | driver {large[1]:.0f} MiB |")
        print(f"| ratio | {large[0] / small[0]:.2f} x | {large[1] / small[1]:.2f} x |")


if __name__ == "__main__":
    main()
