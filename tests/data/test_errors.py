"""data/command/errors.py: what ends a command with one line, and with which code."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.command.errors import INTERRUPTED, UserError, exit_on_user_error, first_line, refused_by_system, user_error_in
from tests.support.commands import ROOT


def test_a_user_error_ends_a_command_with_one_line_and_code_2(capsys: pytest.CaptureFixture[str]):
    @exit_on_user_error
    def main(argv: list[str] | None = None) -> None:
        raise UserError("bad\n  input")

    assert main([]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: bad input\n")


def test_ctrl_c_ends_a_command_with_one_line_and_code_130(capsys: pytest.CaptureFixture[str]):
    @exit_on_user_error
    def main(argv: list[str] | None = None) -> None:
        raise KeyboardInterrupt

    assert main([]) == exit_on_user_error(main)([]) == 130  # a verb's main() is called by another one
    captured = capsys.readouterr()
    assert (captured.out, captured.err.splitlines()) == ("", [INTERRUPTED] * 2)


def test_a_command_that_works_returns_its_code():
    codes = [exit_on_user_error(lambda argv, code=code: code)([]) for code in (None, 0, 3)]
    assert codes == [0, 0, 3]


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("k"), SystemExit(5)])
def test_exceptions_that_are_no_user_error_are_raised_unchanged(error: BaseException):
    @exit_on_user_error
    def main(argv: list[str] | None = None) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        main([])
    assert caught.value is error


def test_a_trace_has_no_keys_and_does_not_steer_the_terminal():
    code = (
        "from data.command.errors import exit_on_user_error\n"
        "@exit_on_user_error\n"
        "def main(argv):\n"
        "    raise KeyError('hf_a_key_of_mine', 'https://me:pass@host', 1) from ValueError('a\\x1b[2J\\u202eb')\n"
        "main([])\n"
    )
    environment = {**os.environ, "HF_TOKEN": "hf_a_key_of_mine"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("ValueError: a\\x1b[2J\\u202eb\n\nThe above exception")
    assert done.stderr.endswith("KeyError: ('***', 'https://host', 1)\n")


def test_a_user_error_is_found_in_what_frameworks_wrap_around_it():
    said = UserError("said")

    class RayTaskError(Exception):
        cause = said

    class RayTaskErrorOfItsCausesClass(UserError):
        """What Ray raises; its text is the whole remote traceback."""

        cause = said

    chained = RuntimeError("chained")
    chained.__cause__ = RayTaskError()
    for wrapped in (said, RayTaskError(), RayTaskErrorOfItsCausesClass("Traceback ..."), chained):
        assert user_error_in(wrapped) is said


def test_an_error_that_occurred_while_a_user_error_was_handled_is_an_error_of_its_own():
    bug = KeyError("a bug")
    bug.__context__ = UserError("said")
    assert user_error_in(bug) is None


def test_without_a_user_error_nothing_is_found_also_in_a_circle():
    first, second = RuntimeError(), RuntimeError()
    first.__cause__, second.__cause__ = second, first
    assert user_error_in(first) is None
    assert user_error_in(None) is None


def test_the_first_line_of_an_error_without_a_message_is_its_class():
    assert first_line(KeyError()) == "KeyError"
    assert first_line(ValueError("\none\ntwo")) == "one"


def test_a_reader_that_goes_away_ends_a_command_without_a_word():
    code = "from data.command.errors import exit_on_user_error\n"
    code += "raise SystemExit(exit_on_user_error(lambda argv: print('x' * 10**6))([]))"
    command = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert command.stdout is not None
    assert command.stderr is not None
    assert command.stdout.read(3) == "xxx"
    command.stdout.close()
    assert (command.wait(timeout=60), command.stderr.read()) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "x", "/a/b"), "/a/b: Permission denied"),
        (OSError(errno.ENOSPC, "x"), "No space left on device"),
        (Exception("Error while serializing: I/O error: No space left (os error 28)"), "No space left on device"),
        (RuntimeError("PytorchStreamWriter failed writing"), "a file could not be written whole"),
        (FileNotFoundError(errno.ENOENT, "x", "/a/b"), ""),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), ""),
        (OSError(errno.EMFILE, "x"), ""),
        (Exception("no (os error 2)"), ""),
        (ValueError("it says (os error 28)"), ""),
        (ValueError("PytorchStreamWriter"), ""),
    ],
)  # fmt: skip
def test_an_error_of_the_system_is_one_line(error: Exception, said: str, capsys: pytest.CaptureFixture[str]):
    assert refused_by_system(error) == said

    @exit_on_user_error
    def main(argv: list[str] | None = None) -> None:
        raise KeyError("wrapped") from error

    if said:
        assert main([]) == 2
        line = f"error: {said}. Check permissions and free space, then run the same command.\n"
        assert capsys.readouterr().err == line
    else:
        with pytest.raises(KeyError):
            main([])


@pytest.mark.seconds
def test_a_command_in_a_deleted_directory_says_so(tmp_path: Path):
    code = (
        "import os, shutil, sys; os.chdir(sys.argv[1]); shutil.rmtree(sys.argv[1])\n"
        "from data.command.console import main; sys.exit(main(sys.argv[2:]))\n"
    )
    for words in (["--help"], ["generate", "--model", "m", "--dataset", "facts", "--out", "o"]):
        gone = tmp_path / "gone"
        gone.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", code, str(gone), *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (2, "error: the current directory was deleted. Go to another one.\n")
