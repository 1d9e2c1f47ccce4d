"""Content-addressed tables: what an evaluation has paid for once, kept under the hash of all that decides it."""

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.command.errors import UserError, first_line
from data.parquet import Unreadable, read_parquet
from data.shape import as_read, parse_json
from data.storage import Folder, sha256

# Of the file's metadata.
KEY = b"evaluation"


def hash_of(key: dict[str, Any]) -> str:
    """SHA-256 of a JSON-like key, whatever the order of its entries."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


class Store:
    """A folder with one folder per kind of table, each file written whole or not at all and never changed.

    A file is named KIND/HASH.CHECKSUM.parquet, after the hash of its key and the beginning of its own SHA-256.

    Args:
        path: made when the first table is written.
    """

    def __init__(self, path: str):
        self.path = path

    def get_or_make(self, kind: str, key: dict[str, Any], make: Callable[[], pa.Table]) -> pa.Table:
        """The table of a key; made, and kept, if there is none.

        Raises:
            UserError: a kept file is damaged, or is another key's.
        """
        folder = Folder(f"{self.path}/{kind}")
        name = _name(folder, key)
        if name is None:
            table = make()
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: json.dumps(key).encode()})
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd")
            content = buffer.getvalue()
            name = f"{hash_of(key)}.{_checksum(content)}.parquet"
            folder.write(name, content)
        return self._read(folder, name, key)

    def _read(self, folder: Folder, name: str, key: dict[str, Any]) -> pa.Table:
        where, content = f"{folder.path}/{name}", folder.read_if_there(name)
        if content is None or _checksum(content) != name.split(".")[1]:
            raise UserError(f"'{where}' is damaged. Delete it; it is made again.")
        try:
            table = read_parquet(content)
        except Unreadable as error:
            raise UserError(f"'{where}' cannot be read ({first_line(error)}). Delete it; it is made again.") from error
        if _key_of(table) != as_read(key):
            raise UserError(f"'{where}' holds something else than its name says. Delete it; it is made again.")
        return table


def _key_of(table: pa.Table) -> Any:
    """The key that a kept table is of, None if it does not say one."""
    try:
        return parse_json((table.schema.metadata or {}).get(KEY, b"null"))
    except ValueError:
        return None


def _name(folder: Folder, key: dict[str, Any]) -> str | None:
    """The file of a key. Two runs at the same time may both have made one."""
    return min((name for name in folder.names() if name.startswith(f"{hash_of(key)}.")), default=None)


def _checksum(content: bytes) -> str:
    return sha256(content)[:16]
