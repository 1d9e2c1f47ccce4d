"""Nothing is lost: SIGKILL at random moments of the driver, of workers, of engines and of a whole Ray node.

The engine is a stub (tests/stubs.py) so that sixty kills stay affordable, and so is the signal; scorer, Ray and
everything else are real. `tests/benchmarks/kills.py` does the same with a real vLLM, for docs/benchmarks.md.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.schema import Group
from data.shards import NegativeSet
from tests.conftest import ROOT
from tests.ray_cluster import RayCluster

KILLS = 20
SHARDS = 24
STRATEGIES = ("an", "bn", "mn", "tn")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(num_cpus=2) as running:
        yield running


@pytest.fixture(scope="module")
def whole(cluster: RayCluster, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set that a run without a kill makes."""
    out = tmp_path_factory.mktemp("whole") / "set"
    assert start(cluster, reference, out, seconds_per_prompt=0).wait(timeout=300) == 0
    return out


def start(cluster: RayCluster, reference: Path, out: Path, *, seconds_per_prompt: float) -> subprocess.Popen:
    """Start the job's driver; the same command goes on with what an earlier one left."""
    options: dict[str, Any] = {
        "model": reference, "dataset": "facts", "limit": SHARDS * 10 - 3, "groups_per_shard": 10,
        "strategies": ",".join(f"{name}=2" for name in STRATEGIES), "embedder": "reference", "out": out,
    }  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out.parent / "log.txt", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.stubs", *words, "--engine.seconds_per_prompt", str(seconds_per_prompt)],
            cwd=ROOT, env=cluster.env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def checksums(out: Path) -> dict[str, str]:
    """SHA-256 of every finished shard: with a record, or with a manifest, for which the records are removed."""
    records = [out / f"{record.stem}.parquet" for record in out.glob("_job/shard-*.json")]
    finished = out.glob("shard-*.parquet") if (out / "manifest.json").exists() else records
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in finished}


def made(group: Group, strategy: str) -> list[tuple[list[int], str, str | None]]:
    return [(c.ids, c.text, c.source_id) for c in group.negatives if c.strategy == strategy]


def check_equal(out: Path, whole: Path, seen: dict[str, str]) -> None:
    """Every group exactly once, as an uninterrupted run makes it, and nothing beside."""
    found, expected = NegativeSet(str(out)), NegativeSet(str(whole))
    ours, theirs = list(found.groups()), list(expected.groups())
    assert [g.id for g in ours] == [g.id for g in theirs]
    assert len({g.id for g in ours}) == len(ours) == SHARDS * 10 - 3
    for group, other in zip(ours, theirs, strict=True):
        assert (group.prompt_ids, group.response_ids) == (other.prompt_ids, other.response_ids)
        for strategy in ("bn", "mn", "tn"):
            assert made(group, strategy) == made(other, strategy)
        assert len({text for _, text, _ in made(group, "an")}) == 2
    assert {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in seen} == seen
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}


@pytest.mark.timeout(900)
def test_the_driver_killed_at_random_moments(cluster: RayCluster, reference: Path, whole: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    kills = round_number = 0
    resumed = 0
    while kills < KILLS:
        out, seen = tmp_path / str(round_number) / "set", {}
        round_number += 1
        while True:
            driver = start(cluster, reference, out, seconds_per_prompt=0.03)
            try:
                code = driver.wait(timeout=draw.uniform(1, 25) if kills < KILLS else 300)
                assert code == 0, (out.parent / "log.txt").read_text()[-3000:]
                break
            except subprocess.TimeoutExpired:
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
                kills += 1
            now = checksums(out)
            resumed += bool(now)
            assert {name: now[name] for name in seen} == seen
            seen = now
        check_equal(out, whole, seen)
    assert resumed >= KILLS // 4  # kills before the first shard alone would prove little


@pytest.mark.timeout(900)
def test_workers_and_engines_killed_at_random_moments(
    cluster: RayCluster, reference: Path, whole: Path, tmp_path: Path
) -> None:
    """The job survives them: Ray starts the actor again and gives it the shard that it had."""
    draw = random.Random(1)
    left = {"SampleStage": KILLS, "ScoreStage": KILLS}
    round_number = 0
    while any(left.values()):
        out, seen = tmp_path / str(round_number) / "set", {}
        round_number += 1
        driver = start(cluster, reference, out, seconds_per_prompt=0.2)
        due: dict[int, float] = {}
        while driver.poll() is None:
            for process, stage in cluster.actors():
                if left.get(stage):
                    # From when the process is there: while it loads, while it waits and while it works.
                    moment = due.setdefault(process.pid, time.monotonic() + draw.uniform(0, 12))
                    if time.monotonic() >= moment:
                        seen = {**checksums(out), **seen}
                        process.kill()
                        left[stage] -= 1
            time.sleep(0.05)
        assert driver.returncode == 0, (out.parent / "log.txt").read_text()[-3000:]
        check_equal(out, whole, seen)


@pytest.mark.timeout(300)
def test_a_ray_node_killed_while_it_works(reference: Path, whole: Path, tmp_path: Path) -> None:
    """Two nodes; the driver lies on the head node, the other one dies with all its actors."""
    with RayCluster(num_cpus=1, nodes=2) as cluster:
        out = tmp_path / "set"
        driver = start(cluster, reference, out, seconds_per_prompt=0.2)
        try:
            while len(checksums(out)) < 2:
                assert driver.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
                time.sleep(0.1)
            seen = checksums(out)
            assert any(stage in ("SampleStage", "ScoreStage") for _, stage in cluster.actors(node=1))
            cluster.kill_node(1)
            cluster.add_node()
            code = driver.wait(timeout=240)
        finally:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
        assert code == 0, (tmp_path / "log.txt").read_text()[-3000:]
        check_equal(out, whole, seen)


def test_orphans_of_a_killed_driver_cannot_write_beside_the_next_one(tmp_path: Path) -> None:
    from data.errors import UserError
    from data.shards import NegativeSetWriter

    first = NegativeSetWriter(str(tmp_path), {}, ["embedding"])
    first.begin()
    second = NegativeSetWriter(str(tmp_path), {}, ["embedding"])
    second.begin()
    with pytest.raises(UserError, match="another run of the job has taken over"):
        first.write_shard(0, [], [], seconds={}, attention_path="packed")
    assert not list(tmp_path.glob("shard-*"))
    second.write_shard(0, [], [], seconds={}, attention_path="packed")
