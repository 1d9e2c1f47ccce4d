"""Nothing is lost: SIGKILL at every write of a job, and of driver, engine and worker under Ray.

Each process dies at a named point (tests/support/kill_points.py), so these few kills meet every state that a kill can
leave behind. `test_kills` has twenty at random moments of each kind, and a node's, with the real scorer
(`make test-all`).
"""

import os
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from data.command.options import make_config
from data.shards import NegativeSet
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from tests.support.commands import ForkedCommand
from tests.support.kill_points import arm, in_flight
from tests.support.kills import check_equal, checksums, made
from tests.support.ray_cluster import RayCluster
from tests.support.stubs import EngineStub, signals_stub
from tests.support.without_ray import without_ray

pytestmark = pytest.mark.seconds

SHARDS = range(3)
# Every file that a job of three shards writes, in order; of staging, of the shards, of the end.
STAGING = [".claim/00001.json", "_job/job.json", *(f"_job/inputs/{i:05d}.jsonl" for i in SHARDS), "_job/inputs.json"]
LOADING = [f"_job/tries/load-{stage}-1" for stage in ("sample", "score")]
WORK = [
    name
    for i in SHARDS
    for name in (
        *(f"_job/tries/{i:05d}-{stage}-1" for stage in ("sample", "score")),
        *(f"shard-{i:05d}.parquet", f"_job/shard-{i:05d}.json"),
    )
]
END = ["rejects.parquet", "README.md", "manifest.json"]
POINTS = [f"{moment} {name}" for name, moment in product([*STAGING, *LOADING, *WORK, *END], ("before", "after"))]


OPTIONS: dict[str, Any] = {
    "dataset": "facts", "limit": 20, "groups_per_shard": 8, "strategies": "an=2,bn=1,mn=1,tn=1", "embedder": "reference"
}  # fmt: skip
# MN draws from the reference model, which the stub scorer of the jobs under Ray lacks.
UNDER_RAY = {**OPTIONS, "strategies": "an=2,bn=1,tn=1"}


def command(reference: Path, out: Path, options: dict[str, Any], *more: str) -> list[str]:
    options = {"model": reference, "out": out, **options}
    return [*(word for key, value in options.items() for word in (f"--{key}", str(value))), *more]


def run(armed: Path, *words: str, env: dict[str, str] | None = None) -> int:
    """The job's exit code, minus the signal that ended it."""
    driver = ForkedCommand.start("tests.support.kill_points", str(armed), *words, env=env)
    try:
        code = driver.wait(timeout=300)
    finally:
        driver.kill()
    assert code in (0, -signal.SIGKILL), driver.stderr[-3000:]
    return code


def finish(reference: Path, out: Path, options: dict[str, Any] = OPTIONS) -> None:
    """Run the job in this process, to its end."""
    with without_ray():
        config = make_config(GenerateConfig, model=str(reference), out=str(out), **options)
        generate(config, Components(engine=EngineStub, signals=signals_stub))


@pytest.fixture(scope="module")
def whole(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set that a run without a kill makes."""
    out = tmp_path_factory.mktemp("whole") / "set"
    finish(reference, out)
    return out


@pytest.mark.parametrize("point", [*POINTS, "half of _job"])
def test_a_job_killed_at_a_write_goes_on_and_loses_nothing(
    point: str, reference: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    assert run(arm(tmp_path / "armed", point), "--no-ray", *command(reference, out, OPTIONS)) == -signal.SIGKILL
    seen = checksums(out)
    assert len(seen) == finished_by(point)
    finish(reference, out)
    check_equal(out, whole, seen)


def finished_by(point: str) -> int:
    """Shards that have their records."""
    return sum(POINTS.index(f"after _job/shard-{i:05d}.json") <= [*POINTS, "half of _job"].index(point) for i in SHARDS)


def test_every_write_of_a_job_has_its_kill_points(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def recording(put: Callable[[str, str], None]) -> Callable[[str, str], None]:
        def recorded(source: str, target: str) -> None:
            written.append(os.path.relpath(target, tmp_path / "set"))
            put(source, target)

        return recorded

    for name in ("replace", "link"):
        monkeypatch.setattr(os, name, recording(getattr(os, name)))
    finish(reference, tmp_path / "set")
    assert written == [*STAGING, *LOADING, *WORK, *END]


# --- under Ray ---


@pytest.fixture(scope="module")
def two_nodes(cluster: RayCluster) -> RayCluster:
    """The session's cluster and another node of one core: on one core alone, actors start one after another.

    The node comes after the tests of submitted jobs: nodes on one machine share the folder of a job's working
    directory, and the one that is done with it first removes it.
    """
    cluster.add_node()
    return cluster


@pytest.fixture(scope="module")
def whole_under_ray(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set that the jobs under Ray make."""
    out = tmp_path_factory.mktemp("whole") / "set"
    finish(reference, out, UNDER_RAY)
    return out


def test_engine_and_workers_killed_in_a_job_that_survives_them(
    two_nodes: RayCluster, reference: Path, whole_under_ray: Path, tmp_path: Path
) -> None:
    """Ray starts each actor again and gives it the shards that it had; the driver notices nothing.

    The engine's actor dies with two shards or more in flight, of which it has finished none.
    """
    points = ["sample", "after shard-00001.parquet", "after _job/shard-00002.json"]
    armed, out = arm(tmp_path / "armed", *points), tmp_path / "set"
    assert run(armed, *command(reference, out, UNDER_RAY), env=two_nodes.env) == 0
    assert not list(armed.iterdir())
    killed = in_flight(armed)
    # Which ones come first is Ray's to say.
    assert len(killed["begun"]) >= 2
    assert all(name.endswith("-sample-1") for name in killed["begun"])
    assert {mark["pid"] for mark in killed["begun"].values()} == {killed["pid"]}
    assert len({mark["actor"] for mark in killed["begun"].values()}) == 1
    assert killed["finished"] == []
    check_equal(out, whole_under_ray, {})
    for group, other in zip(*(NegativeSet(str(path)).groups() for path in (out, whole_under_ray)), strict=True):
        assert made(group, "an") == made(other, "an")  # the stub draws by the request's seed


def test_a_driver_killed_between_shards_and_before_the_manifest(
    two_nodes: RayCluster, reference: Path, whole_under_ray: Path, tmp_path: Path
) -> None:
    armed, out = arm(tmp_path / "armed", "told", "before manifest.json"), tmp_path / "set"
    assert run(armed, *command(reference, out, UNDER_RAY), env=two_nodes.env) == -signal.SIGKILL
    seen = checksums(out)
    assert seen
    assert run(armed, *command(reference, out, UNDER_RAY), env=two_nodes.env) == -signal.SIGKILL
    assert seen.items() <= checksums(out).items()
    assert len(list(out.glob("_job/shard-*.json"))) == len(SHARDS)
    assert not (out / "manifest.json").exists()
    assert run(armed, *command(reference, out, UNDER_RAY), env=two_nodes.env) == 0
    check_equal(out, whole_under_ray, seen)
