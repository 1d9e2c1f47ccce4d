"""Where a command may write the one file that it was asked for: never over a file that it did not write itself."""

import os
from collections.abc import Callable

from data.command.errors import UserError
from data.command.options import resolve_path
from data.manifest import MANIFEST
from data.storage import Folder


def place_of(path: str, option: str, example: str) -> tuple[Folder, str]:
    """The folder and the name of a file that is to be written, symbolic links followed.

    Args:
        option, example: for messages, e.g. "--html" and "page.html".

    Raises:
        UserError: the path is a folder's.
    """
    resolved = resolve_path(path)
    folder, _, name = real_path(resolved).rpartition("/")
    if not name or resolved.endswith("/") or os.path.isdir(resolved):
        raise UserError(f"{option} '{path}' is a directory. Give a file, e.g. {path.rstrip('/')}/{example}.")
    return Folder(folder or "/"), name


def real_path(path: str) -> str:
    """A local path with all symbolic links followed; a URL as it is."""
    return path if "://" in path else os.path.realpath(path)


def is_inside(path: str, folder: str) -> bool:
    """Whether a path lies in a folder, symbolic links followed; not if it is the folder."""
    return real_path(path).startswith(f"{real_path(folder).rstrip('/')}/")


def refuse_foreign(
    folder: Folder, name: str, option: str, is_ours: Callable[[bytes], bool] | None = None, enough: int = -1
) -> None:
    """Raise UserError if a file is there that this command has not written, or any file of a negative set.

    Args:
        is_ours: whether a file with this content is one that may be replaced; None: none is.
        enough: bytes of its beginning that `is_ours` needs and is given; -1: all.
    """
    names = folder.names()
    where = f"{option} '{folder / name}'"
    if MANIFEST in names and name in names:
        raise UserError(f"{where} is there already, in a directory with a negative set. Choose another file.")
    if MANIFEST in names and name.endswith(".parquet"):  # what a link names that is not there
        raise UserError(f"{where} would be taken for a shard of the negative set there. Choose another file.")
    if name not in names:
        return
    try:
        ours = is_ours is not None and is_ours(_beginning(folder, name, enough))
    except OSError:  # no file, or not ours to read
        ours = False
    if not ours:
        raise UserError(f"{where} is there already, and not of this command. Move it away, or choose another file.")


def _beginning(folder: Folder, name: str, enough: int) -> bytes:
    if enough < 0:
        return folder.read(name)
    with folder.open(name) as file:
        return file.read(enough)
