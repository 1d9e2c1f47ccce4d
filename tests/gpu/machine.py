"""What figures are of: device, driver, versions, commit, sources."""

import hashlib
import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from data.command.errors import UserError
from data.shape import parse_json
from tests.support.commands import ROOT

PACKAGES = ("torch", "triton", "transformers", "accelerate", "trl", "datasets", "vllm")
# What the parts run.
SOURCES = ("data", "negatives_gen", "trainer", "tests/gpu", "tests/support", "tests/benchmarks")


def machine(device: str) -> dict[str, Any]:
    """The device as torch sees it, the driver and the versions, found out in a process of its own.

    So nothing of this program lies in the GPU's memory while a part is measured.

    Raises:
        UserError: there is no such device, or torch cannot be imported.
    """
    asked = subprocess.run(
        [sys.executable, "-m", "tests.gpu.machine", device], cwd=ROOT, capture_output=True, text=True
    )
    if asked.returncode:
        raise UserError(f"torch cannot be asked for a device: {(asked.stderr.strip() or 'no word').splitlines()[-1]}")
    found = parse_json(asked.stdout.splitlines()[-1])
    if "problem" in found:
        raise UserError(
            f"no GPU is at hand: {found['problem']}. Run it on a machine with one; `--device cpu` tries the program "
            "itself, in small."
        )
    return found


def commit() -> str:
    """The commit that is checked out, with "+" where tracked files differ from it; "" without git."""
    asked = [
        subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    ]
    if any(one.returncode for one in asked):
        return ""
    return asked[0].stdout.strip() + ("+" if asked[1].stdout.strip() else "")


def sources() -> str:
    """A hash of the Python files that the parts run, which says more than a commit: it is there without git too."""
    found = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _seen(device: str) -> dict[str, Any]:
    import torch

    seen = {"kind": device, "python": platform.python_version(), "versions": _versions()}
    if device == "cpu":
        return {**seen, "device": f"CPU ({platform.machine()})", "driver": "", "gibibytes": None}
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return {"problem": f"torch {torch.__version__} sees none" + ("" if built else ", and is built without CUDA")}
    properties = torch.cuda.get_device_properties(0)
    seen["versions"]["CUDA"] = str(torch.version.cuda)
    return {**seen, "device": properties.name, "driver": _driver(), "gibibytes": properties.total_memory / 2**30}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _driver() -> str:
    try:
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        asked = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return asked.stdout.strip().partition("\n")[0] or "unknown"


if __name__ == "__main__":
    print(json.dumps(_seen(sys.argv[1])))
