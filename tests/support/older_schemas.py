"""A negative set as earlier releases wrote it."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from data.storage import sha256


def write_as_schema(version: int, negative_set: Path) -> None:
    """Rewrite a finished set in place as one of schema version 2 or 3.

    Version 3 has no `in_support`, no `occupancy` and no `slot_seconds`; 2 also no `query`, and calls a shard's layout
    `attention_path`.
    """
    manifest = json.loads((negative_set / "manifest.json").read_text())
    lacking = {3: [], 2: ["query"]}[version]
    for record in [*manifest["shards"], manifest["rejects"]]:
        file = negative_set / record["file"]
        table = pq.read_table(file)
        gone = {"in_support", *lacking} & set(table.column_names)
        pq.write_table(table.drop_columns(sorted(gone)), file)
        record["sha256"] = sha256(file.read_bytes())
    for record in manifest["shards"]:
        del record["occupancy"]
        record.pop("slot_seconds", None)
        if version == 2:
            record["attention_path"] = record.pop("layout")
        record["bytes"] = (negative_set / record["file"]).stat().st_size
    written = {**manifest, "schema_version": version}
    (negative_set / "manifest.json").write_text(json.dumps(written, indent=2) + "\n")
