"""A negative set as releases before schema version 3 wrote it."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from data.storage import sha256


def write_as_schema_2(negative_set: Path) -> None:
    """Rewrite a finished set in place: no `query`, the layout of a shard called `attention_path`."""
    manifest = json.loads((negative_set / "manifest.json").read_text())
    for record in [*manifest["shards"], manifest["rejects"]]:
        file = negative_set / record["file"]
        table = pq.read_table(file)
        pq.write_table(table.drop_columns(["query"]), file)
        record["sha256"] = sha256(file.read_bytes())
    for record in manifest["shards"]:
        record["attention_path"] = record.pop("layout")
        record["bytes"] = (negative_set / record["file"]).stat().st_size
    (negative_set / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 2}, indent=2) + "\n")
