"""Files on a disk or an object store, written whole or not at all.

On a local disk a file is written under a temporary name, flushed and renamed. An object store has no rename;
there one completed upload is the atomic step (fsspec shows no object until the upload is complete).
"""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data.errors import UserError

TEMPORARY_PREFIX = ".tmp-"


class Folder:
    """A directory on any fsspec file system, with atomic writes.

    Args:
        path: local path or URL (s3://, gs://, ...).
    """

    def __init__(self, path: str):
        try:
            self.fs, self.root = fsspec.core.url_to_fs(path)
        except (ValueError, ImportError) as error:
            raise UserError(f"cannot open '{path}': {error}") from error
        self.path = path
        self.is_local = isinstance(self.fs, LocalFileSystem)
        if self.is_local and os.path.isfile(self.root):
            raise UserError(f"'{path}' is a file, not a directory. Give a directory.")

    def __truediv__(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def names(self, folder: str = "") -> set[str]:
        """Names of the files and folders directly inside (an empty set if it does not exist)."""
        path = self / folder if folder else self.root
        # Another process may have written here: never trust fsspec's listing cache.
        self.fs.invalidate_cache(path)
        try:
            return {os.path.basename(p.rstrip("/")) for p in self.fs.ls(path, detail=False)}
        except FileNotFoundError:
            return set()
        except NotADirectoryError:
            raise UserError(f"'{self.path}' is a file, not a directory. Give a directory.") from None

    def read(self, name: str) -> bytes:
        """Read a whole file. Raises FileNotFoundError."""
        return self.fs.cat_file(self / name)

    def open(self, name: str) -> Any:
        """Open a file for reading parts of it. Raises FileNotFoundError."""
        return self.fs.open(self / name, "rb")

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """Read whole files, from an object store many at a time. Raises FileNotFoundError."""
        contents = self.fs.cat([self / name for name in names]) if names else {}
        by_path = contents if isinstance(contents, dict) else {self / names[0]: contents}  # fsspec unwraps a single one
        return [by_path[self / name] for name in names]

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file atomically, creating folders. Raises UserError if the place cannot be written."""
        path = self / name
        try:
            if not self.is_local:
                self.fs.pipe_file(path, content)
                return
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=Path(path).parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise UserError(
                f"cannot write '{path}': {error.strerror or error}. Check the path, its permissions and free space."
            ) from error

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all it holds; nothing happens if it does not exist."""
        if self.fs.exists(self / name):
            self.fs.rm(self / name, recursive=True)

    def exists(self) -> bool:
        """Whether the directory is there; an object store has no empty ones."""
        return self.fs.exists(self.root)

    def remove_temporary(self, folder: str = "") -> None:
        """Remove what an interrupted write left behind."""
        for name in self.names(folder):
            if name.startswith(TEMPORARY_PREFIX):
                self.remove(f"{folder}/{name}" if folder else name)


def sha256(content: bytes) -> str:
    """Hex SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()
