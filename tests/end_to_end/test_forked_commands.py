"""A forked command does what `python -m` does in a fresh interpreter, without its imports."""

import signal
import time
from pathlib import Path

import pytest

from tests.support.commands import ForkedCommand, fork_command, run_command

pytestmark = pytest.mark.seconds

PROBE = """
import atexit, json, os, sys, threading
print(json.dumps([__name__, sys.argv[1:], os.getcwd(), os.environ.get("PROBE"), os.environ.get("HF_HUB_OFFLINE")]))
threading.Timer(0.2, print, ["thread"]).start()
atexit.register(print, "atexit")
if "raise" in sys.argv:
    raise RuntimeError("probe")
sys.exit({"text": "a text", "none": None, "number": 7}[sys.argv[1]])
"""


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    (tmp_path / "probe_of_commands.py").write_text(PROBE)
    return tmp_path


@pytest.mark.parametrize("word", ["text", "none", "number", "raise"])
def test_output_exit_code_arguments_folder_and_environment_are_those_of_a_fresh_interpreter(
    word: str, probe: Path
) -> None:
    ran, forked = (
        way("probe_of_commands", word, "--x", "a b", env={"PROBE": "here"}, cwd=probe)
        for way in (run_command, fork_command)
    )
    assert (forked.stdout, forked.returncode) == (ran.stdout, ran.returncode)
    assert forked.stderr.splitlines()[-1:] == ran.stderr.splitlines()[-1:]
    assert ran.stdout.splitlines()[1:] == ["thread", "atexit"]


def test_the_server_has_imported_torch_and_runs_one_thread(tmp_path: Path) -> None:
    (tmp_path / "probe_of_server.py").write_text(
        "import sys, threading; print('torch' in sys.modules, 'trl' in sys.modules, threading.active_count())"
    )
    assert fork_command("probe_of_server", cwd=tmp_path).stdout == "True True 1\n"


def test_a_killed_command_takes_its_children_along(tmp_path: Path) -> None:
    (tmp_path / "probe_of_children.py").write_text(
        "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    )
    command = ForkedCommand.start("probe_of_children", cwd=tmp_path)
    while not command.stdout.endswith("\n"):
        assert command.poll() is None, command.stderr
        time.sleep(0.02)
    child = int(command.stdout)
    command.kill()
    assert command.wait(timeout=10) == -signal.SIGKILL
    while Path(f"/proc/{child}").exists() and "sleep" in Path(f"/proc/{child}/cmdline").read_text():
        time.sleep(0.02)
