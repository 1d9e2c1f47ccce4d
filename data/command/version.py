"""Which version of this project runs."""

import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

PACKAGE = "contrastive-preference-optimization"
ROOT = Path(__file__).parents[2]


def version_line() -> str:
    """Name and version of the package and, from a checkout, the git commit."""
    return " ".join([PACKAGE, _version(), *(f"(git {commit[:12]})" for commit in [git_commit()] if commit)])


def git_commit() -> str | None:
    """The commit of this code if it runs from a git checkout of its own."""
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _version() -> str:
    """The version of the sources where they are at hand: what is installed may link to them from an earlier version."""
    sources = ROOT / "pyproject.toml"
    if sources.is_file():
        return tomllib.loads(sources.read_text(encoding="utf-8"))["project"]["version"]
    return metadata.version(PACKAGE)
