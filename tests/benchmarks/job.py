"""The whole job against its stages alone on the same groups, and where the time goes: `python -m tests.benchmarks.job`.

base-6m on Dolly with all strategies and the reference as embedder. The job is `python -m negatives_gen`; each stage
alone is a process of its own that loads what it needs and works through the same shards, so both sides count their
starts.
"""

import dataclasses
import pickle
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from data.command.options import make_config
from data.manifest import read_manifest
from data.storage import Folder
from negatives_gen.config import GenerateConfig
from tests.benchmarks.dolly import DOLLY, MODEL
from tests.benchmarks.extent import extent

ROWS = extent(512, 96)
OPTIONS = {
    "model": MODEL, "dataset": DOLLY, "task": "dolly", "limit": ROWS, "groups_per_shard": 64,
    "strategies": "an=4,bn=2,mn=3,tn=2", "max_new_tokens": 64, "embedder": "reference",
}  # fmt: skip


def work_of(folder: Path):
    from negatives_gen.job.job import make_work

    config = make_config(GenerateConfig, **OPTIONS, out=str(folder / "set"))
    source = config.open_source(config.dataset, config.split, config.limit)
    return config, source, make_work(config, source)


def stage_alone(name: str, folder: Path) -> None:
    """In a child process: one stage, over all shards; what it passes on lies in files."""
    from negatives_gen.job.actors import STAGES, new_row
    from negatives_gen.job.batching import work_on
    from negatives_gen.job.inputs import stage_inputs

    config, source, work = work_of(folder)
    if name == "read":
        work.writer.begin()
        stage_inputs(work.writer, source, config.groups_per_shard)
        return
    work = dataclasses.replace(work, writer=pickle.loads(pickle.dumps(work.writer)))
    staged = stage_inputs(work.writer, [], config.groups_per_shard)
    stage = STAGES[name](work)
    for index in range(staged.shards):
        payload = folder / f"{index}.pickle"
        row = {**new_row(index), "payload": payload.read_bytes() if name != "sample" else b""}
        row = work_on(stage, row)
        assert not row["error"], row["error"]
        if name == "sample":
            payload.write_bytes(row["payload"])


def timed(*command: str) -> float:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return time.perf_counter() - started


def main() -> None:
    if sys.argv[1:]:
        return stage_alone(sys.argv[1], Path(sys.argv[2]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = {stage: timed("tests.benchmarks.job", stage, name) for stage in ("read", "sample", "score")}
        words = [word for key, value in OPTIONS.items() for word in (f"--{key}", str(value))]
        whole = timed("negatives_gen", *words, "--out", str(folder / "whole"))
        made = read_manifest(Folder(str(folder / "whole")))
    total = sum(alone.values())
    print(f"base-6m, {made.counts['rows_written']} Dolly groups, {OPTIONS['strategies']}, wall time with starts")
    for stage, seconds in alone.items():
        print(f"| {stage} alone | {seconds:.0f} s |")
    print(f"| sum of the stages alone | {total:.0f} s |")
    print(f"| whole job | {whole:.0f} s, {whole / total:.2f} x the sum |")
    print(f"| engine occupied, over all shards of the job, with its scorers beside it | {made.occupancy:.0%} |")
    parts: Counter[str] = Counter()
    for record in made.shards:
        parts.update(record.seconds)
    print(
        "| inside the job, by part | " + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items()) + " |"
    )
    return None


if __name__ == "__main__":
    main()
