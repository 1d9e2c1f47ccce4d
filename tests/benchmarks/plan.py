"""What `plan` predicts against what the job makes: `python -m tests.benchmarks.plan`.

base-6m on Dolly with four strategies and the reference as embedder. The plan measures its default sample with the real
engine and scorer, then `python -m negatives_gen` makes the set. Seconds are those inside the actors, as `plan` counts
them: without starts, and of one device. On CPUs engine and scorers share the cores in the job, so its seconds are more
than those of the plan, whose stages run one after another.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from data.command.options import make_config
from negatives_gen.verbs.plan import Plan, PlanConfig, predict
from tests.benchmarks.dolly import DOLLY, MODEL
from tests.benchmarks.extent import extent

ROWS = extent(200, 64)


def real_job(options: dict[str, object], out: Path) -> dict:
    """The manifest of a real run."""
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "negatives_gen", *words, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads((out / "manifest.json").read_text())


def compare(plan: Plan, manifest: dict) -> None:
    """A line for each number: predicted, real, ratio."""
    tokens, seconds, size = Counter(), Counter(), 0
    for shard in manifest["shards"]:
        tokens.update(shard["tokens"])
        seconds.update(shard["seconds"])
        size += shard["bytes"]
    rows = {
        "groups": (plan.groups, manifest["counts"]["rows_written"]),
        "shards": (plan.shards, len(manifest["shards"])),
        **{f"tokens, {kind}": (plan.tokens[kind], tokens[kind]) for kind in ("prompt", "response", "negatives")},
        "tokens, sampled": (plan.tokens["sampled"], tokens["an"]),
        "bytes": (plan.bytes, size),
        **{f"seconds, {part}": (3600 * hours, seconds[part]) for part, hours in plan.device_hours.items()},
        "seconds, all": (3600 * sum(plan.device_hours.values()), sum(seconds.values())),
    }
    print("| | predicted | real | predicted / real |")
    for name, (predicted, real) in rows.items():
        digits = 1 if name.startswith("seconds") else 0
        print(f"| {name} | {predicted:.{digits}f} | {real:.{digits}f} | {predicted / max(real, 1e-9):.2f} x |")


def main() -> None:
    options: dict[str, object] = {
        "model": MODEL, "dataset": DOLLY, "task": "dolly", "limit": ROWS,
        "groups_per_shard": 64, "strategies": "an=4,bn=2,mn=3,tn=2", "max_new_tokens": 64, "embedder": "reference",
    }  # fmt: skip
    started = time.perf_counter()
    plan = predict(make_config(PlanConfig, **options))  # type: ignore[arg-type]  # values of several types
    planned = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        manifest = real_job(options, Path(folder) / "set")
    ended = time.perf_counter()
    print(f"base-6m, {options['limit']} Dolly rows, {options['strategies']}, wall time with starts:")
    print(f"plan {planned - started:.0f} s, job {ended - planned:.0f} s")
    compare(plan, manifest)


if __name__ == "__main__":
    main()
