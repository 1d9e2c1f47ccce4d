"""What Ray's workers on this machine are told, which Ray writes into a log that everyone can read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from negatives_gen.job.cluster import worker_variables
from tests.support.commands import ROOT

SECRET = "hf_not_for_others"


def test_keys_are_left_to_inheritance() -> None:
    environ = {
        "HF_TOKEN": SECRET, "HF_HUB_TOKEN": SECRET, "VLLM_API_KEY": SECRET, "OPENAI_API_KEY": SECRET,
        "HF_ENDPOINT": f"https://me:{SECRET}@hub.example", "HF_HOME": "/cache", "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "2", "HOME": "/home/me",
    }  # fmt: skip
    passed = worker_variables(environ, ["/code", "", "/venv"])
    assert passed == {
        "HF_HOME": "/cache", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2", "PYTHONPATH": "/code:/venv",
    }  # fmt: skip


SCRIPT = """
import os
import ray
from negatives_gen.job.cluster import _start_local_ray

_start_local_ray()
print("worker:", ray.get(ray.remote(lambda: os.environ.get("HF_TOKEN")).remote()))
print("logs:", ray._private.worker._global_node.get_session_dir_path())
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_real_worker_has_the_key_and_rays_logs_do_not() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"HF_TOKEN": SECRET}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert said["worker"] == SECRET, done.stderr[-2000:]
    files = [path for path in Path(said["logs"]).rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
