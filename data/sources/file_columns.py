"""Files that are read as one table have the same columns, or are refused with the two files and what differs."""

import csv
from collections.abc import Sequence
from pathlib import Path

from data.command.cleaning import shown
from data.command.errors import UserError
from data.shape import parse_json


def require_same_columns(files: Sequence[Path]) -> list[list[str]]:
    """The columns of each of some files, of Parquet, CSV or JSON arrays.

    Raises:
        UserError: two of them differ: in their columns, or for CSV in their order.
        ValueError, csv.Error: one is no table.
    """
    if len(files) < 2 and files[0].suffix != ".csv":
        return []
    columns = [_columns(path) for path in files]
    for path, found in zip(files, columns, strict=True):
        alone = [name for name in columns[0] if name not in found], [name for name in found if name not in columns[0]]
        names = (files[0].name, path.name) if files[0].name != path.name else (str(files[0]), str(path))
        if any(alone):
            pairs = [(name, own) for name, own in zip(names, alone, strict=True) if own]
            only = [f"only '{name}' has {', '.join(map(shown, own))}" for name, own in pairs]
            what = f"have different columns: {'; '.join(only)}"
        elif path.suffix == ".csv" and found != columns[0]:
            what = "have their columns in different orders"
        else:
            continue
        raise UserError(f"'{names[0]}' and '{names[1]}' {what}. Give files of one kind, by a glob.")
    return columns


def _columns(path: Path) -> list[str]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    if path.suffix == ".parquet":
        from data import parquet  # takes what a command that only prints its help has no time for

        with parquet.parquet_file(path.open("rb"), known=True) as file:
            return list(file.schema_arrow.names)
    rows = parse_json(path.read_bytes())
    return list(dict.fromkeys(name for row in rows for name in row)) if isinstance(rows, list) else []
