"""Every benchmark of `make bench` can be imported, and those of SMALL run in small."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.dolly import SHARED
from tests.support.commands import ROOT

BENCHMARKS = re.findall(r"for benchmark in ([a-z ]+);", (ROOT / "Makefile").read_text())[0].split()
# Constants of a benchmark that make it small, and its words on the command line.
SMALL: dict[str, tuple[dict[str, Any], list[str]]] = {
    "growth": ({"SHARD": 16}, ["64"]),
    "head": ({"REPEATS": 1, "POSITIONS": 64}, []),
    "kills": ({"KILLS": 1}, []),
    "plan": ({}, ["64"]),
    "reuse": ({"ROWS": 64}, []),
}
NEED_DATA = {"kills", "plan", "reuse"}
PROGRAM = """
import importlib, json, sys
name, constants = sys.argv.pop(1), json.loads(sys.argv.pop(1))
module = importlib.import_module(f"tests.benchmarks.{name}")
vars(module).update(constants)
module.main()
"""


@pytest.mark.seconds
@pytest.mark.parametrize("name", BENCHMARKS)
def test_make_bench_names_a_benchmark(name: str) -> None:
    assert callable(importlib.import_module(f"tests.benchmarks.{name}").main)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_in_small_prints_its_table(name: str) -> None:
    if name in NEED_DATA and not Path(SHARED).is_dir():
        pytest.skip(f"no {SHARED} here, which this benchmark is of")
    constants, words = SMALL[name]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, json.dumps(constants), *words],
        cwd=ROOT, capture_output=True, text=True, timeout=1700,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) >= 2
    assert re.search(r"\d", rows[-1])
