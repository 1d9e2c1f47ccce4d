"""Negative sets that were changed so that only what they hold can be wrong: checksums and sizes fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data.manifest import shard_name
from data.schema import Group, groups_to_table
from data.shards import NegativeSet
from data.storage import sha256


def change_groups(path: Path, edit: Callable[[list[Group]], Any], shard: int = 0) -> list[Group]:
    """Change the groups of a shard of a set; returns them as they are now."""
    negatives = NegativeSet(str(path))
    groups = negatives.shard(shard)
    edit(groups)
    file = path / shard_name(shard)
    pq.write_table(groups_to_table(groups, negatives.signals), file)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["shards"][shard].update(bytes=file.stat().st_size, sha256=sha256(file.read_bytes()))
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return groups
