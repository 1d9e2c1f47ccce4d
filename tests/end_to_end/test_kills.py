"""Nothing is lost: SIGKILL at random moments of the driver, of workers, of engines and of a whole Ray node.

The engine is a stub (tests/support/stubs.py) so that sixty kills stay affordable, and so is the signal; scorer, Ray and
everything else are real. `test_kill_points` has a kill at each point, in every run of the tests;
`tests/benchmarks/kills.py` does the same with a real vLLM, for docs/benchmarks.md.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.kills import KilledJob, check_equal, checksums, kill_actors, kill_drivers, log_of
from tests.support.ray_cluster import RayCluster

pytestmark = [pytest.mark.slow, pytest.mark.ray]

KILLS = 20
ROWS = 237


def job_on(cluster: RayCluster, reference: Path) -> KilledJob:
    options = {
        "model": str(reference), "dataset": "facts", "limit": str(ROWS), "groups_per_shard": "10",
        "strategies": "an=2,bn=2,mn=2,tn=2", "embedder": "reference", "engine.seconds_per_prompt": "0.03",
    }  # fmt: skip
    return KilledJob(
        cluster, "tests.support.stubs", [word for key, value in options.items() for word in (f"--{key}", value)]
    )


@pytest.fixture(scope="module")
def job(reference: Path) -> Iterator[KilledJob]:
    with RayCluster(num_cpus=2) as cluster:
        yield job_on(cluster, reference)


@dataclass(frozen=True)
class Whole:
    """The set that a run without a kill makes, and the seconds it took, which depend on what else the machine does."""

    path: Path
    seconds: float


@pytest.fixture(scope="module")
def whole(job: KilledJob, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    out = tmp_path_factory.mktemp("whole") / "set"
    started = time.monotonic()
    assert job.start(out).wait(timeout=900) == 0, log_of(out)
    return Whole(out, time.monotonic() - started)


@pytest.mark.timeout(2400)
def test_the_driver_killed_at_random_moments(job: KilledJob, whole: Whole, tmp_path: Path) -> None:
    resumed = kill_drivers(job, whole.path, tmp_path, kills=KILLS, longest=0.8 * whole.seconds)
    assert resumed >= KILLS // 2  # every other kill, by design


@pytest.mark.timeout(2400)
def test_workers_and_engines_killed_at_random_moments(job: KilledJob, whole: Whole, tmp_path: Path) -> None:
    """The job survives them: Ray starts the actor again and gives it the shard that it had."""
    kill_actors(job, whole.path, tmp_path, kills={"SampleStage": KILLS, "ScoreStage": KILLS}, longest=10)


@pytest.mark.timeout(1200)
def test_a_ray_node_killed_while_it_works(reference: Path, whole: Whole, tmp_path: Path) -> None:
    """Two nodes; the driver lies on the head node, the other one dies with all its actors."""
    with RayCluster(num_cpus=1, nodes=2) as cluster:
        out = tmp_path / "set"
        driver = job_on(cluster, reference).start(out)
        try:
            while len(checksums(out)) < 2:
                assert driver.poll() is None, log_of(out)
                time.sleep(0.1)
            seen = checksums(out)
            assert list(cluster.actors(node=1))
            cluster.kill_node(1)
            cluster.add_node()
            code = driver.wait(timeout=900)
        finally:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
        assert code == 0, log_of(out)
        check_equal(out, whole.path, seen)
