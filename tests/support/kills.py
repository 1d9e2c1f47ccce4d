"""SIGKILL at random moments of a job that runs on a cluster of its own, and what must hold after it."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.schema import Group
from data.shards import NegativeSet
from negatives_gen.job.attempts import MAX_TRIES, TRIES
from tests.support.ray_cluster import ROOT, RayCluster


@dataclass(frozen=True)
class KilledJob:
    """A job to kill: `python -m module *words --out OUT` on the cluster."""

    cluster: RayCluster
    module: str
    words: Sequence[str]

    def start(self, out: Path) -> subprocess.Popen:
        """Start the job's driver; the same command goes on with what an earlier one left."""
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out.parent / "log.txt", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", self.module, *self.words, "--out", str(out)],
                cwd=ROOT, env=self.cluster.env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip


def kill_drivers(job: KilledJob, whole: Path, folder: Path, *, kills: int, longest: float) -> int:
    """SIGKILL the driver `kills` times, start it again each time, and let it finish after the last.

    Every other kill waits for a shard that this driver finished, and comes within a third of `longest` after it: how
    soon that is depends on the machine, and kills before any shard alone would prove little. Returns how many of the
    kills found finished shards.
    """
    draw = random.Random(0)
    done = resumed = number = 0
    while done < kills:
        out, seen = folder / str(number) / "set", {}
        number += 1
        while True:
            driver = job.start(out)
            moment = draw.uniform(1, longest)
            if done % 2:
                moment /= 3
                while driver.poll() is None and len(checksums(out)) == len(seen):
                    time.sleep(0.1)
            try:
                code = driver.wait(timeout=moment if done < kills else 600)
                assert code == 0, log_of(out)
                break
            except subprocess.TimeoutExpired:
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
                done += 1
            now = checksums(out)
            resumed += bool(now)
            assert {name: now[name] for name in seen} == seen
            seen = now
        check_equal(out, whole, seen)
    return resumed


def kill_actors(job: KilledJob, whole: Path, folder: Path, *, kills: dict[str, int], longest: float) -> None:
    """SIGKILL actors of those stages, each within `longest` seconds of being seen; the job goes on by itself.

    One that is at the last try of a shard, or to load, is let live for once: the job would end if it died too.
    """
    draw, left, number = random.Random(1), dict(kills), 0
    while any(left.values()):
        out, seen = folder / str(number) / "set", {}
        number += 1
        driver = job.start(out)
        due: dict[int, float] = {}
        while driver.poll() is None:
            for process, stage in job.cluster.actors():
                if left.get(stage) and not at_last_try(out, stage):
                    # From when the process is there: while it loads, while it waits and while it works.
                    moment = due.setdefault(process.pid, time.monotonic() + draw.uniform(0, longest))
                    if time.monotonic() >= moment:
                        seen = {**checksums(out), **seen}
                        process.kill()
                        left[stage] -= 1
            time.sleep(0.05)
        assert driver.returncode == 0, log_of(out)
        check_equal(out, whole, seen)


def at_last_try(out: Path, stage: str) -> bool:
    """Whether all tries before this one of a worker of the stage have ended by its death."""
    return any(out.glob(f"{TRIES}/*-{stage.removesuffix('Stage').lower()}-{MAX_TRIES}"))


def checksums(out: Path) -> dict[str, str]:
    """SHA-256 of every finished shard: with a record, or with a manifest, for which the records are removed."""
    records = [out / f"{record.stem}.parquet" for record in out.glob("_job/shard-*.json")]
    finished = out.glob("shard-*.parquet") if (out / "manifest.json").exists() else records
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in finished}


def check_equal(out: Path, whole: Path, seen: dict[str, str]) -> None:
    """Every group exactly once, as an uninterrupted run makes it; what was finished is unchanged; nothing beside."""
    found, expected = NegativeSet(str(out)), NegativeSet(str(whole))
    ours, theirs = list(found.groups()), list(expected.groups())
    assert [g.id for g in ours] == [g.id for g in theirs]
    assert len({g.id for g in ours}) == len(ours) > 0
    for group, other in zip(ours, theirs, strict=True):
        assert (group.prompt_ids, group.response_ids) == (other.prompt_ids, other.response_ids)
        for strategy in ("bn", "mn", "tn"):
            assert made(group, strategy) == made(other, strategy)
        sampled = [text for _, text, _ in made(group, "an")]
        assert len(set(sampled)) == len(sampled) == found.manifest.job["strategies"]["an"]["count"]
    assert {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in seen} == seen
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}


def made(group: Group, strategy: str) -> list[tuple[list[int], str, str | None]]:
    """What a strategy made for a group."""
    return [(c.ids, c.text, c.source_id) for c in group.negatives if c.strategy == strategy]


def log_of(out: Path) -> str:
    """The end of what the job's drivers said."""
    return (out.parent / "log.txt").read_text()[-3000:]
