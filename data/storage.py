"""Files on a disk or an object store, written whole or not at all.

On a local disk a file is written under a temporary name, flushed and renamed. An object store has no rename;
there one completed upload is the atomic step (fsspec shows no object until the upload is complete).

`Folder.create` replaces nothing: a hard link on a local disk, a conditional put on an object store.
"""

import contextlib
import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data.command.errors import UserError, first_line

TEMPORARY_PREFIX = ".tmp-"
# What a file system answers that has no hard links, or a store that has no conditional put.
NOT_OFFERED = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)


class Folder:
    """A directory on any fsspec file system, with atomic writes.

    Args:
        path: local path or URL (s3://, gs://, ...).

    Every method raises UserError if a store cannot be reached or refuses.
    """

    def __init__(self, path: str):
        try:
            self.fs, self.root = fsspec.core.url_to_fs(path)
        except Exception as error:  # a store's client may look for credentials here, with errors of its own
            raise UserError(f"cannot open '{path}': {first_line(error)}") from error
        self.path = path
        self.is_local = isinstance(self.fs, LocalFileSystem)
        if self.is_local and os.path.isfile(self.root):
            raise UserError(f"'{path}' is a file, not a directory. Give a directory.")
        self._stands_in = _nearest_there(self.root) if self.is_local else ""

    def __truediv__(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def _require_file(self, path: str) -> None:
        """Raise FileNotFoundError for what is no file: a folder, a named pipe (read for ever), a link to itself."""
        if not self.is_local:
            return
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise FileNotFoundError(error.errno, error.strerror, path) from error
        if not stat.S_ISREG(mode):
            raise FileNotFoundError(errno.ENOENT, "Not a file", path)

    @contextmanager
    def _reaching(self, verb: str, path: str) -> Iterator[None]:
        """Make a UserError of what a store's client raises (botocore's errors are not even OSErrors). What is not
        there stays a FileNotFoundError, and a local disk's errors but for lacking permissions stay what they are."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise
        except Exception as error:
            if self.is_local:
                if isinstance(error, PermissionError):
                    where = error.filename or path
                    raise UserError(f"cannot {verb} '{where}': {error.strerror}. Check its permissions.") from error
                raise
            raise self._unreachable(verb, path, error) from error

    def _unreachable(self, verb: str, path: str, error: Exception) -> UserError:
        return UserError(
            f"cannot {verb} '{self.fs.unstrip_protocol(path)}': {first_line(error).rstrip('.')}. Check that the store "
            "is up, its address, credentials and permissions; an interrupted job goes on with the same command."
        )

    def names(self, folder: str = "") -> set[str]:
        """Names of the files and folders directly inside (an empty set if it does not exist)."""
        path = self / folder if folder else self.root
        # Another process may have written here: never trust fsspec's listing cache.
        self.fs.invalidate_cache(path)
        try:
            with self._reaching("list", path):
                return {os.path.basename(p.rstrip("/")) for p in self.fs.ls(path, detail=False)}
        except FileNotFoundError:
            return set()
        except NotADirectoryError:
            raise UserError(f"'{self.path}' is a file, not a directory. Give a directory.") from None

    def size(self, name: str) -> int | None:
        """Bytes of a file, None if it does not exist."""
        self.fs.invalidate_cache(self.root)
        try:
            with self._reaching("read", self / name):
                self._require_file(self / name)
                return int(self.fs.size(self / name))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, name: str) -> bytes:
        """Read a whole file. Raises FileNotFoundError, also for what is no file."""
        try:
            with self._reaching("read", self / name):
                self._require_file(self / name)
                return self.fs.cat_file(self / name)
        except (IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(error.errno, error.strerror, error.filename) from error

    def read_if_there(self, name: str) -> bytes | None:
        """Read a whole file; None if there is none."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def open(self, name: str) -> Any:
        """Open a file for reading parts of it, and no more than those. Raises FileNotFoundError."""
        with self._reaching("read", self / name):
            self._require_file(self / name)
            return self.fs.open(self / name, "rb", cache_type="none")

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """Read whole files, from an object store many at a time. Raises FileNotFoundError."""
        with self._reaching("read", self.root):
            for name in names:
                self._require_file(self / name)
            contents = self.fs.cat([self / name for name in names]) if names else {}
        by_path = contents if isinstance(contents, dict) else {self / names[0]: contents}  # fsspec unwraps a single one
        return [by_path[self / name] for name in names]

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file atomically, creating folders. Raises UserError if the place cannot be written."""
        path = self / name
        if not self.is_local:
            try:
                self.fs.pipe_file(path, content)
            except Exception as error:  # FileNotFoundError too: there is no such bucket
                raise self._unreachable("write", path, error) from error
            return
        with self._written(path, content) as temporary:
            os.replace(temporary, path)

    def write_together(self, contents: Mapping[str, bytes]) -> None:
        """Write whole files of which none is good without the others, in their order.

        On a local disk none is put in its place unless there was room for all.

        Raises:
            UserError: the place cannot be written.
        """
        with contextlib.ExitStack() as written:
            if self.is_local:
                files = {name: written.enter_context(self._written(self / name, c)) for name, c in contents.items()}
                for name, temporary in files.items():
                    os.replace(temporary, self / name)
            else:
                for name, content in contents.items():
                    self.write(name, content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a whole file if there is none of that name, creating folders. False if another one is there.

        True too if the very same content is there, as after a put whose answer was lost and that was sent again.
        Where a file system has no hard links, or a store no conditional put, two processes that create a file in the
        same instant may both be told True.

        Raises:
            UserError: the place cannot be written.
        """
        path = self / name
        if not self.is_local:
            return self._put_new(name, content)
        with self._written(path, content) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return self._holds(name, content)
            except OSError as error:
                if error.errno not in NOT_OFFERED:
                    raise
                if os.path.exists(path):
                    return self._holds(name, content)
                os.replace(temporary, path)
        return True

    def _put_new(self, name: str, content: bytes) -> bool:
        try:
            self.fs.pipe_file(self / name, content, mode="create")
        except Exception as error:  # each store says in its own way that an object is there
            try:
                return self._holds(name, content)
            except (FileNotFoundError, UserError):
                # fsspec raises NotImplementedError for a store whose client has no such mode.
                if not isinstance(error, NotImplementedError) and getattr(error, "errno", None) not in NOT_OFFERED:
                    raise self._unreachable("write", self / name, error) from error
            self.write(name, content)
        return True

    def _holds(self, name: str, content: bytes) -> bool:
        return self.read(name) == content

    @contextmanager
    def _written(self, path: str, content: bytes) -> Iterator[str]:
        """A temporary file with this content beside a local path, gone afterwards. Raises UserError."""
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = new_file(str(Path(path).parent))
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write '{path}': {error.strerror or error}. Check the path, its permissions and free space."
            ) from error

    def upload(self, file: str, name: str) -> None:
        """Copy a local file to the store. Raises UserError if the place cannot be written."""
        try:
            self.fs.put_file(file, self / name)
        except Exception as error:
            raise self._unreachable("write", self / name, error) from error

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all it holds; nothing happens if it does not exist."""
        with self._reaching("remove", self / name), contextlib.suppress(FileNotFoundError):  # another may remove it too
            if self.is_local and os.path.islink(self / name):
                os.unlink(self / name)
            elif os.path.lexists(self / name) if self.is_local else self.fs.exists(self / name):
                self.fs.rm(self / name, recursive=True)

    def remove_if_empty(self, name: str = "") -> None:
        """Remove a folder that holds nothing, and with this directory what it was made in; an object store has none."""
        if not self.is_local:
            return
        with contextlib.suppress(OSError):
            os.rmdir(self / name if name else self.root)
            above = os.path.dirname(self.root)
            while not name and len(above) > len(self._stands_in):
                os.rmdir(above)
                above = os.path.dirname(above)

    def exists(self) -> bool:
        """Whether the directory is there; an object store has no empty ones."""
        with self._reaching("open", self.root):
            return self.fs.exists(self.root)

    def remove_temporary(self, folder: str = "") -> None:
        """Remove what an interrupted write left behind."""
        for name in self.names(folder):
            if name.startswith(TEMPORARY_PREFIX):
                self.remove(f"{folder}/{name}" if folder else name)


def _nearest_there(path: str) -> str:
    """The path, or the nearest folder above it that exists."""
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def new_file(folder: str) -> tuple[int, str]:
    """A new file under a temporary name, with the permissions that the umask leaves: its descriptor and its path."""
    path = f"{folder}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), path


def sha256(content: bytes) -> str:
    """Hex SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()
