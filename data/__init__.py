"""The contract between the stages: schema, manifest, shards, data sources and prompt templates.

Imports neither torch nor ray nor vllm nor trl, so every other room can build on it. For programs: `NegativeSet`, a
finished negative set.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.shards import NegativeSet

__all__ = ["NegativeSet"]


def __getattr__(name: str) -> Any:
    """What this package exports is imported when it is asked for, so that `import data` loads nothing."""
    if name == "NegativeSet":
        from data.shards import NegativeSet

        return NegativeSet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
