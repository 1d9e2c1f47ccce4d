"""Two training processes that meet over gloo on the CPU, with the environment that a launcher gives them."""

import os
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.support.commands import CONTEXT


@dataclass
class TwoProcesses:
    """Rank 0 and rank 1 of 2, and the files that hold what they print."""

    processes: list[BaseProcess]
    printed: list[Path]

    @classmethod
    def start(cls, function: Callable[..., Any], *arguments: Any) -> "TwoProcesses":
        """Call a function of a module in each of two processes; they end with the code that it returns."""
        port = free_port()
        folder = Path(tempfile.mkdtemp())
        printed = [folder / "0", folder / "1"]
        given = [(rank, port, str(printed[rank]), function, arguments) for rank in (0, 1)]
        processes: list[BaseProcess] = [CONTEXT.Process(target=_call, args=each) for each in given]
        for process in processes:
            process.start()
        return cls(processes, printed)

    def finish(self, code: int = 0) -> list[str]:
        """Wait for both; each must end with `code`. What each printed, errors included."""
        for process in self.processes:
            process.join(timeout=300)  # for one that hangs; on a busy machine a start alone takes a minute
        ended = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()  # where one waits for the other for ever
        outputs = [path.read_text() for path in self.printed]
        assert ended == [code, code], "\n".join(outputs)
        return outputs


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _call(rank: int, port: str, printed: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    file = os.open(printed, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, ACCELERATE_USE_CPU="true")
    sys.exit(function(*arguments))
