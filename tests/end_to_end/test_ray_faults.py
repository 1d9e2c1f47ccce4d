"""What goes wrong under Ray ends the job: SIGTERM of the driver, a row that kills its worker, an engine that hangs."""

import os
import signal
import time
from pathlib import Path

import pytest

from data.shards import NegativeSet
from tests.support.commands import ForkedCommand, run_command
from tests.support.kill_points import arm
from tests.support.ray_cluster import RayCluster
from tests.support.read_examples import load_examples

pytestmark = pytest.mark.ray


def words(reference: Path, out: Path, *more: str) -> list[str]:
    options = {
        "model": reference, "out": out, "dataset": "facts", "limit": 20, "groups_per_shard": 8,
        "strategies": "an=2,tn=1", "embedder": "reference",
    }  # fmt: skip
    return ["--stub-scorer", *(word for key, value in options.items() for word in (f"--{key}", str(value))), *more]


def terminated(command: ForkedCommand, out: Path) -> None:
    """SIGTERM while the engine samples: 143, in one line, and the directory is given back as it is."""
    try:
        while not list(out.glob("_job/tries/*-sample-1")):
            assert command.poll() is None, command.stderr[-3000:]
            time.sleep(0.1)
        os.kill(command.pid, signal.SIGTERM)
        assert command.wait(timeout=120) == 128 + signal.SIGTERM, command.stderr[-3000:]
    finally:
        command.kill()
    assert "SIGTERM: ending; the same command goes on" in command.stderr
    assert "Traceback" not in command.stderr
    assert not (out / ".claim").exists()
    assert (out / "_job/inputs.json").exists()


def test_sigterm_to_the_driver_ends_the_job_and_gives_the_directory_back(
    cluster: RayCluster, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    _, *hangs = words(reference, out, "--engine.seconds_per_prompt", "1000")
    nothing = str(arm(tmp_path / "armed"))
    terminated(ForkedCommand.start("tests.support.kill_points", nothing, *hangs, env=cluster.env), out)


@pytest.mark.slow
def test_sigterm_to_a_driver_that_has_started_ray_itself(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    hangs = words(reference, out, "--engine.seconds_per_prompt", "1000")
    terminated(ForkedCommand.start("tests.support.stubs", *hangs, env={"RAY_ADDRESS": ""}), out)


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_is_set_aside_and_the_others_are_made(
    cluster: RayCluster, reference: Path, tmp_path: Path
) -> None:
    """All three are in flight in one actor, of which one prompt of the first kills it: the others come to no harm."""
    out = tmp_path / "set"
    [first, *_] = load_examples("facts", "prompt-completion", limit=20)
    asked = first.prompt.removeprefix("Question: ").partition("\n")[0]
    dies = words(reference, out, "--engine.dies_of", asked)
    done = run_command("tests.support.stubs", *dies, env=cluster.env)
    assert done.returncode == 2, done.stderr[-3000:]
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"error: shard-00000.parquet of '{out}' was set aside: its worker died 3 times in stage 'sample'"
    )
    assert sorted(path.name for path in out.glob("*.parquet")) == ["shard-00001.parquet", "shard-00002.parquet"]


@pytest.mark.slow
def test_an_engine_that_hangs_ends_the_job_with_its_shard_and_process(
    cluster: RayCluster, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    hangs = words(reference, out, "--engine.seconds_per_prompt", "1000", "--stall_timeout", "120")
    done = run_command("tests.support.stubs", *hangs, env=cluster.env)
    assert done.returncode == 2, done.stderr[-3000:]
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "error: nothing has moved for 2 min (--stall_timeout): shard-00000.parquet is in stage 'sample'"
    )
    # No shard was finished, so it was given up.
    assert [path.name for path in out.rglob("*") if path.is_file()] in ([], ["log"])


@pytest.mark.slow
def test_a_job_whose_driver_joins_the_cluster_is_made(cluster: RayCluster, reference: Path, tmp_path: Path) -> None:
    done = run_command("tests.support.stubs", *words(reference, tmp_path / "set"), env=cluster.env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(NegativeSet(str(tmp_path / "set"))) == 20
