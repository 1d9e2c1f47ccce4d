"""SIGKILL of drivers, workers and engines with a real vLLM, three of each: `python -m tests.benchmarks.kills`."""

import tempfile
import time
from pathlib import Path

from tests.benchmarks.dolly import DOLLY, MODEL
from tests.benchmarks.extent import extent
from tests.support.kills import KilledJob, kill_actors, kill_drivers, log_of
from tests.support.ray_cluster import RayCluster

KILLS = extent(3, 1)


def main() -> None:
    options = {
        "model": MODEL, "dataset": DOLLY, "task": "dolly", "limit": "160", "groups_per_shard": "16",
        "strategies": "an=2,bn=2,mn=2,tn=2", "max_new_tokens": "32", "embedder": "reference",
    }  # fmt: skip
    vllm = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with RayCluster(num_cpus=2, env=vllm) as cluster, tempfile.TemporaryDirectory() as name:
        job = KilledJob(cluster, "negatives_gen", [word for k, v in options.items() for word in (f"--{k}", v)])
        whole, started = Path(name) / "whole/set", time.perf_counter()
        assert job.start(whole).wait(timeout=600) == 0, log_of(whole)
        seconds = time.perf_counter() - started
        print(f"| uninterrupted | {seconds:.0f} s |", flush=True)
        started = time.perf_counter()
        resumed = kill_drivers(job, whole, Path(name) / "drivers", kills=KILLS, longest=seconds)
        print(f"| {KILLS} drivers killed | {time.perf_counter() - started:.0f} s, {resumed} after the first shard; "
              "nothing lost |", flush=True)  # fmt: skip
        started = time.perf_counter()
        kills = {"SampleStage": KILLS, "ScoreStage": KILLS}
        kill_actors(job, whole, Path(name) / "actors", kills=kills, longest=seconds / 2)
        print(f"| {KILLS} engines and {KILLS} workers killed | {time.perf_counter() - started:.0f} s; nothing lost |")


if __name__ == "__main__":
    main()
