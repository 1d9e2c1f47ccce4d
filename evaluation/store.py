"""Content-addressed tables: what an evaluation has paid for once, kept under the hash of all that decides it."""

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import UserError, first_line
from data.storage import Folder

# Of the file's metadata.
KEY = b"evaluation"


def hash_of(key: dict[str, Any]) -> str:
    """SHA-256 of a JSON-like key, whatever the order of its entries."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


class Store:
    """A folder with one folder per kind of table: KIND/HASH.parquet, written whole or not at all, never changed.

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
        folder, name = Folder(f"{self.path}/{kind}"), f"{hash_of(key)}.parquet"
        if name in folder.names():
            return self._read(folder, name, key)
        table = make()
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: json.dumps(key).encode()})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        folder.write(name, buffer.getvalue())
        return table

    def has(self, kind: str, key: dict[str, Any]) -> bool:
        """Whether the table of a key is kept."""
        return f"{hash_of(key)}.parquet" in Folder(f"{self.path}/{kind}").names()

    def _read(self, folder: Folder, name: str, key: dict[str, Any]) -> pa.Table:
        where = f"{folder.path}/{name}"
        try:
            table = pq.read_table(io.BytesIO(folder.read(name)), page_checksum_verification=True)
            found = json.loads((table.schema.metadata or {})[KEY])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"'{where}' is damaged ({first_line(error)}). Delete it; it is made again.") from error
        if found != json.loads(json.dumps(key)):
            raise UserError(f"'{where}' holds something else than its name says. Delete it; it is made again.")
        return table
