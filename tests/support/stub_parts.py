"""Stubs of parts of `tests.gpu.prove`: one that holds, and faults of every kind."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any


def holds(device: str, counted: str) -> dict[str, Any]:
    """Adds a line to a file, so that it is seen how often it ran."""
    with Path(counted).open("a") as file:
        file.write(f"{device} {os.environ['BENCH_SMALL']}\n")
    return {"checks": [{"what": "a: b", "value": 1.0, "sense": "at most", "bound": 2.0, "holds": True}]}


def is_beyond(device: str) -> dict[str, Any]:
    """Hands back two figures, one of them beyond its bound."""
    figures = {"what": "a: b", "value": 1.0, "sense": "at most", "bound": 2.0, "holds": True}
    return {"checks": [figures, {**figures, "what": "c: b", "value": 3.0, "holds": False}]}


def raises(device: str) -> dict[str, Any]:
    """Says what is said, and raises."""
    print("the last line but those of the trace")
    raise RuntimeError("no such kernel")


def is_killed(device: str) -> dict[str, Any]:
    """Is killed, as by the system's lack of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hangs(device: str, pid: str) -> dict[str, Any]:
    """Never ends, nor does the process that it has started."""
    child = subprocess.Popen(["sleep", "600"])
    Path(pid).write_text(str(child.pid))
    print("started", flush=True)
    time.sleep(600)
    return {}
