"""Packages that an extra of pyproject.toml brings: who lacks one is told which, before any work."""

import importlib.util
from collections.abc import Mapping
from typing import Final

from data.command.errors import UserError

# Package that is imported -> extra that brings it. Ranking signals and trackers name their own.
EXTRAS: Final[Mapping[str, str]] = {
    "ray": "generate",
    "sentence_transformers": "generate,evaluate",
    "openai": "generate,evaluate",
}


def require_package(name: str, needed_by: str) -> None:
    """Raise UserError if a package of `EXTRAS` is not installed.

    Args:
        needed_by: what needs it, as the sentence begins.
    """
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"{needed_by} needs the package {name.replace('_', '-')}, which is not installed: pip install "
            f"'.[{EXTRAS[name]}]' in the folder of this project brings it."
        )
