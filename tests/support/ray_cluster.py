"""A Ray cluster of its own on this machine, of one or more nodes, whose processes can be found and killed."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.support.commands import ROOT

RAY = str(Path(sys.executable).parent / "ray")
STAGES = ("SampleStage", "AskStage", "ScoreStage")


class RayCluster:
    """Started as the README starts one, with token authentication. A context manager.

    Args:
        num_cpus: of each node.
        nodes: the head node, and others.
        env: more environment variables, for nodes and jobs.
        root: what relative paths of jobs count from.

    Attributes:
        env: environment in which `ray` and drivers find the cluster.
    """

    def __init__(self, num_cpus: int, nodes: int = 1, env: dict[str, str] | None = None, root: Path = ROOT):
        port = 20000 + (os.getpid() * 7 + time.monotonic_ns() // 1000) % 12000
        self.address = f"127.0.0.1:{port}"
        self.num_cpus, self.num_nodes, self.port, self.root = num_cpus, nodes, port, root
        self.env = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
            "RAY_worker_niceness": "0",
            "NEGATIVES_GEN_ROOT": str(root),
            # Noticing a dead node takes Ray half a minute unless told.
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "4",
            "PYTHONPATH": str(ROOT),
            # The job's `python` is the first on the cluster's PATH.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **(env or {}),
        }
        self.nodes: list[subprocess.Popen] = []

    def __enter__(self) -> "RayCluster":
        self.env.pop("RAY_ADDRESS", None)
        ports = [f"--port={self.port}", f"--dashboard-port={self.port + 1}"]
        ports.append(f"--dashboard-agent-listen-port={self.port + 2}")
        self._start("--head", *ports)
        self.env["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{self.port + 1}"
        try:
            self._wait_until_up()
            self.env["RAY_ADDRESS"] = self.address
            for _ in range(self.num_nodes - 1):
                self.add_node()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for number in range(len(self.nodes)):
            self.kill_node(number)

    def add_node(self) -> None:
        """One more node."""
        offset = 10 * len(self.nodes)
        self._start(f"--address={self.address}", f"--dashboard-agent-listen-port={self.port + 2 + offset}")

    def kill_node(self, number: int) -> None:
        """SIGKILL every process of a node."""
        if self.nodes[number].poll() is not None:
            return
        processes = psutil.Process(self.nodes[number].pid).children(recursive=True)
        for process in [psutil.Process(self.nodes[number].pid), *processes]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself since
                process.kill()
        self.nodes[number].wait(timeout=60)

    def actors(self, node: int = 0) -> Iterator[tuple[psutil.Process, str]]:
        """The processes of a node's pipeline actors with the names of their stages, whatever they are doing."""
        try:
            children = psutil.Process(self.nodes[node].pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        for process in children:
            try:
                title = " ".join(process.cmdline())
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if title.startswith("ray::"):
                for stage in STAGES:
                    if stage in title:
                        yield process, stage

    def requests(self) -> dict[str, dict[str, float]]:
        """Stage -> the resources that its actors of the newest job asked Ray for, whether they live or not."""
        actors = self._ask("api/v0/actors?detail=true&limit=1000")["data"]["result"]["result"]
        found = [(stage, actor) for actor in actors for stage in STAGES if f"({stage})" in str(actor)]
        newest = max((actor["job_id"] for _, actor in found), default="")
        return {stage: actor["required_resources"] for stage, actor in found if actor["job_id"] == newest}

    def _start(self, *options: str) -> None:
        # No log monitor: it looks at files all the time, for lines that our driver does not take from workers.
        command = [RAY, "start", "--block", "--disable-usage-stats", "--include-log-monitor=false"]
        command += [f"--num-cpus={self.num_cpus}", *options]
        # Its own process group: `ray stop` would stop every cluster on the machine.
        self.nodes.append(
            subprocess.Popen(
                command, env=self.env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )

    def _wait_until_up(self) -> None:
        """What `ray job list` asks for, without its three seconds of imports at each try."""
        for _ in range(120):
            with contextlib.suppress(OSError):
                self._ask("api/jobs/")
                return
            time.sleep(0.5)
        raise AssertionError("the Ray cluster did not come up")

    def _ask(self, path: str) -> Any:
        """What the head's server says."""
        token = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.env['RAY_API_SERVER_ADDRESS']}/{path}", headers=token)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
