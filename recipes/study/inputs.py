"""What the steps read and no command of ours makes: parts of the data, and blank models of another shape."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.command.errors import UserError
from data.shape import parse_json
from data.sources.readers import open_rows
from data.sources.row_reader import RowReader
from data.sources.splits import split_key
from data.sources.tasks import task_of
from data.storage import sha256
from recipes.study.design import Data, Reference

COUNTS = "counts.json"
WEIGHTS = (".safetensors", ".bin", ".index.json")


def write_parts(data: Data, folder: Path) -> None:
    """Write each part as FOLDER/NAME.jsonl, and counts.json last; nothing where that is there already.

    Rows are in the order of a hash of their content, so that each part is a random sample, whatever the file's order.

    Raises:
        UserError: the source cannot be read, or has too few rows.
    """
    if (folder / COUNTS).is_file():
        return
    reader, task = RowReader.of(data.task, [], None), task_of(data.task)
    found = open_rows(data.dataset, reader.needed, reader.optional, False)["train"]
    columns = (*task.columns, *task.optional)
    rows = parts_of([{c: row[c] for c in columns if row.get(c)} for row in found if isinstance(row, dict)], data)
    folder.mkdir(parents=True, exist_ok=True)
    for name, members in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in members), encoding="utf-8")
    (folder / COUNTS).write_text(json.dumps({name: len(members) for name, members in rows.items()}) + "\n")


def parts_of(rows: list[dict[str, Any]], data: Data) -> dict[str, list[dict[str, Any]]]:
    """The rows of each part, none of them in two. Raises UserError for too few rows."""
    if data.first_line:
        rows = [{key: value.split("\n")[0] for key, value in row.items()} for row in rows]
    written = {sha256(json.dumps(row, sort_keys=True).encode()): row for row in rows}
    lengths = {key: sum(len(value) for value in row.values()) for key, row in written.items()}
    fitting = [key for key in sorted(written, key=split_key) if data.shortest <= lengths[key] <= data.longest]
    if len(fitting) < sum(data.parts.values()):
        raise UserError(
            f"data set '{data.dataset}' has {len(fitting)} rows of {data.shortest} to {data.longest} characters, and "
            f"the parts need {sum(data.parts.values())}. Make them smaller."
        )
    parts, taken = {}, 0
    for name, count in data.parts.items():
        end = taken + count if count else len(fitting)
        parts[name] = [written[key] for key in fitting[taken:end]]
        taken = end
    return parts


def write_shape(reference: Reference, folder: Path) -> None:
    """Write a blank model: all of `reference.model` but its weights, and config.json, written last, with its shape."""
    if (folder / "config.json").is_file():
        return
    source = Path(reference.model)
    if not (source / "config.json").is_file():
        raise UserError(f"references.{reference.name}: '{source}' has no config.json.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.name != "config.json" and not path.name.endswith(WEIGHTS):
            shutil.copyfile(path, folder / path.name)
    (folder / "config.json").write_text(shaped((source / "config.json").read_text(), reference.shape))


def shaped(config: str, shape: Mapping[str, Any]) -> str:
    """A config.json with other values, as text. Raises UserError for a key that it has not."""
    there = parse_json(config)
    if unknown := sorted(shape.keys() - there.keys()):
        raise UserError(f"shape: config.json has no '{unknown[0]}'.")
    return json.dumps({**there, **shape}, indent=2) + "\n"
