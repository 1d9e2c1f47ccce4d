"""`make install` in a folder of its own, with an interpreter that writes down what it is asked to do."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from data.command import version
from tests.support.commands import ROOT

# As `python3 -m venv DIR` and as DIR/bin/python.
INTERPRETER = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *"$FAILS"*) [ -z "$FAILS" ] || exit 1 ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docker").mkdir()
    for name in ("Makefile", "pyproject.toml", "docker/requirements-cpu.txt", "docker/requirements-dev.txt"):
        shutil.copy2(ROOT / name, tmp_path / name)
    executable(tmp_path / "python3", INTERPRETER)
    return tmp_path


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def installed(folder: Path, fails: str = "") -> tuple[int, list[str]]:
    """Exit code of `make install`, and what pip was asked for."""
    log = folder / "log"
    log.write_text("")
    environment = {**os.environ, "LOG": str(log), "FAILS": fails, "PATH": f"{folder}/bin:/usr/bin:/bin"}
    command = ["make", "install", f"PYTHON={folder}/python3", "VENV=venv"]
    code = subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode
    asked = [line.partition("--disable-pip-version-check ")[2] for line in log.read_text().splitlines()]
    return code, [line for line in asked if line]


LOCKED = [
    line
    for name in ("requirements-cpu.txt", "requirements-dev.txt")
    for line in (ROOT / "docker" / name).read_text().splitlines()
    if not line.startswith("#")
]
PACKAGE = "--no-deps -e ."


def exact(asked: list[str], options: str = "") -> list[str]:
    """The packages that these calls of pip, each of which takes a part of them, have asked for."""
    start = f"--no-deps {options}"
    assert all(line.startswith(start) for line in asked)
    return sorted(package for line in asked for package in line.removeprefix(start).split())


def test_without_a_gpu_exact_versions_and_this_package_are_installed_once(folder: Path) -> None:
    code, asked = installed(folder)
    assert (code, asked[-1], exact(asked[:-1])) == (0, PACKAGE, sorted(LOCKED))
    assert installed(folder) == (0, [])


def test_torchs_own_index_is_tried_second_and_the_package_is_installed_then_too(folder: Path) -> None:
    code, asked = installed(folder, fails=f"--no-deps {LOCKED[-1]}")
    second = [line for line in asked if "--extra-index-url" in line]
    assert (code, asked[-1]) == (0, PACKAGE)
    assert exact(second, "--extra-index-url https://download.pytorch.org/whl/cpu ") == sorted(LOCKED)


def test_an_installation_that_fails_is_not_taken_for_done(folder: Path) -> None:
    assert installed(folder, fails="-e .")[0] != 0
    assert not (folder / "venv" / ".installed").exists()


@pytest.mark.parametrize(("exit_code", "last"), [(0, "-c docker/constraints-gpu.txt -e .[gpu,dev]"), (9, PACKAGE)])
def test_a_gpu_is_one_that_nvidia_smi_lists(folder: Path, exit_code: int, last: str) -> None:
    executable(folder / "bin" / "nvidia-smi", f"#!/bin/sh\nexit {exit_code}\n")
    code, asked = installed(folder)
    assert (code, asked[-1], len(asked) == 1) == (0, last, exit_code == 0)


# Provenance: which commit is recorded.


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", *settings, *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def outer(tmp_path: Path) -> Path:
    """Somebody's repository, with a commit, in which our code lies somewhere."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "theirs")
    (tmp_path / "site-packages").mkdir()
    return tmp_path


def test_the_commit_of_a_repository_that_holds_the_environment_is_not_ours(
    outer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "ROOT", outer / "site-packages")
    assert version.git_commit() is None
    (outer / "site-packages" / ".git").mkdir()  # empty: git looks further up
    assert version.git_commit() is None


@pytest.mark.parametrize("content", ['[project]\nname = "theirs"\nversion = "9.9"\n', "[tool.x]\ny = 1\n", "[project"])
def test_a_project_that_this_code_was_installed_into_is_not_ours(
    outer: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """By pip install --target . in its root."""
    monkeypatch.setattr(version, "ROOT", outer)
    monkeypatch.setattr(version.metadata, "version", lambda name: f"installed {name}")
    (outer / "pyproject.toml").write_text(content)
    assert version.version() == f"installed {version.PACKAGE}"
    if content != "[project":
        assert version.git_commit() is None
    (outer / "pyproject.toml").write_text(f'[project]\nname = "{version.PACKAGE}"\nversion = "9.9"\n')
    assert version.version() == "9.9"
    assert version.git_commit() == git(outer, "rev-parse", "HEAD")


def test_the_commit_is_that_of_the_checkout_whatever_git_is_told(outer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = outer / "site-packages"
    git(ours, "init", "-q")
    git(ours, "commit", "-q", "--allow-empty", "-m", "ours")
    monkeypatch.setattr(version, "ROOT", ours)
    monkeypatch.setenv("GIT_DIR", str(outer / ".git"))
    found = version.git_commit()
    monkeypatch.delenv("GIT_DIR")
    assert found == git(ours, "rev-parse", "HEAD")
