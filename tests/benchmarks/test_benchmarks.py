"""Every benchmark of `make bench` can be imported, and runs in small."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.dolly import SHARED
from tests.support.commands import ROOT

BENCHMARKS = re.findall(r"for benchmark in ([a-z ]+);", (ROOT / "Makefile").read_text())[0].split()
NO_DATA = {"growth", "head", "remedies", "speculation"}


@pytest.mark.seconds
@pytest.mark.parametrize("name", BENCHMARKS)
def test_make_bench_names_a_benchmark(name: str) -> None:
    assert callable(importlib.import_module(f"tests.benchmarks.{name}").main)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_in_small_prints_its_table(name: str) -> None:
    if name not in NO_DATA and not Path(SHARED).is_dir():
        pytest.skip(f"no {SHARED} here, which this benchmark is of")
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}"],
        cwd=ROOT, capture_output=True, text=True, timeout=1700,
        env={**os.environ, "BENCH_SMALL": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) >= 2
    assert re.search(r"\d", rows[-1])
