"""Which version of this project runs."""

import os
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = "contrastive-preference-optimization"
ROOT = Path(__file__).parents[2]


def version_line() -> str:
    """Name and version of the package and, from a checkout, the git commit."""
    return " ".join([PACKAGE, version(), *(f"(git {commit[:12]})" for commit in [git_commit()] if commit)])


def git_commit() -> str | None:
    """The commit of this code if it runs from a git checkout of its own, else None.

    A repository that this code merely lies in, as an environment does, or that $GIT_DIR names, is not its own.
    """
    project = _project_here()
    if not (ROOT / ".git").exists() or (project is not None and project.get("name") != PACKAGE):
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = done.stdout.splitlines()
    return found[1] if len(found) == 2 and Path(found[0]).resolve() == ROOT.resolve() else None


def version() -> str:
    """This project's version: that of the sources, where they are at hand, as what is installed may be a link to them
    from an earlier version."""
    project = _project_here() or {}
    return project["version"] if project.get("name") == PACKAGE else metadata.version(PACKAGE)


def _project_here() -> dict[str, Any] | None:
    """The project of the pyproject.toml beside this code: another one, where code was installed into its folder."""
    try:
        return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return None
