"""Commands as people run them, `python -m MODULE WORDS`: in a fresh interpreter, or forked from one that has imported.

Importing torch, transformers and TRL costs more processor time than most of what the tests' commands do. So one server
per pytest process imports them, runs nothing, and forks: no thread, no kernel and no connection exists before a fork.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["tests.support.preloaded"]
CONTEXT.set_forkserver_preload(PRELOADED)


def preload_vllm() -> None:
    """Let the server import vLLM too; a server that is there already forks processes that import it themselves."""
    CONTEXT.set_forkserver_preload([*PRELOADED, "tests.support.preloaded_vllm"])


def run_command(*arguments: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run `python -m ...` as a user does, in a process of its own that imports all it needs."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=500,
    )


def fork_command(*arguments: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """`run_command` without the imports: the same command in a process that is forked.

    For tests of what a command does. Of each command one test at least uses `run_command`, and so does what depends
    on imports or on variables that are read at import.
    """
    command = ForkedCommand.start(*arguments, env=env, cwd=cwd)
    try:
        code = command.wait(timeout=500)
    finally:
        command.kill()
    return subprocess.CompletedProcess(arguments, code, command.stdout, command.stderr)


@dataclass
class ForkedCommand:
    """A command that runs in a forked process of a session of its own, so that it is killed with its children."""

    process: BaseProcess
    outputs: tuple[Path, Path]

    @classmethod
    def start(cls, *arguments: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> "ForkedCommand":
        """Start `python -m MODULE WORDS` with this process's environment and what `env` adds."""
        folder = Path(tempfile.mkdtemp(prefix="forked-"))
        outputs = folder / "stdout", folder / "stderr"
        for path in outputs:
            path.touch()
        module, *words = arguments
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        process = CONTEXT.Process(target=_run_module, args=(module, words, environment, str(cwd), outputs))
        process.start()
        return cls(process, outputs)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self.outputs[0].read_text()

    @property
    def stderr(self) -> str:
        return self.outputs[1].read_text()

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        self.process.join(0)
        return self.process.exitcode

    def wait(self, timeout: float) -> int:
        """The exit code; minus the signal's number of one that was killed. Raises TimeoutExpired."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL the command and what it started; does nothing after its end."""
        if self.poll() is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # too young to have its session
                self.process.kill()
            self.process.join()


def _run_module(
    module: str, words: Sequence[str], environment: dict[str, str], cwd: str, outputs: tuple[Path, Path]
) -> None:
    """In the forked process: what `python -m` does, to the end of the process."""
    os.setsid()
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = True  # a module that a test has just written is not taken from an earlier one's bytecode
    sys.argv = [module, *words]
    sys.path[:0] = [cwd, *environment["PYTHONPATH"].split(os.pathsep)]
    sys.modules.pop(module, None)  # the server has imported it; it runs anew, as __main__
    code, interrupted = 0, False
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the end of an interpreter does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if interrupted:  # an interpreter ends by the signal, so that a shell knows
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)
