"""data/storage.py: folders on a file system and on an object store."""

import os
from pathlib import Path

import pytest

from data.command.errors import UserError
from data.storage import Folder
from tests.support.written import all_files, put_no_file, refusal


def test_an_unknown_kind_of_url_is_refused():
    assert "cannot open 'bogus://x'" in refusal(lambda: Folder("bogus://x"))


def test_fault_injection_a_failing_rename_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = Folder(str(tmp_path))
    folder.write("a/b", b"old")

    def full_disk(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    message = refusal(lambda: folder.write("a/b", b"new"))
    assert f"cannot write '{tmp_path}/a/b': No space left on device" in message
    assert all_files(tmp_path) == {"a/b": b"old"}


def test_a_folder_writes_reads_lists_and_removes(tmp_path: Path):
    folder = Folder(str(tmp_path / "new"))
    assert folder.names() == set()
    folder.write("x/y", b"1")
    folder.write("z", b"2")
    assert (folder.names(), folder.names("x"), folder.read("x/y")) == ({"x", "z"}, {"y"}, b"1")
    assert (tmp_path / "new" / "z").stat().st_mode & 0o777 == 0o644
    folder.remove("x")
    folder.remove("absent")
    assert folder.names() == {"z"}
    with pytest.raises(FileNotFoundError):
        folder.read("x/y")


@pytest.mark.parametrize("verb", ["list", "read", "remove"])
def test_a_file_of_another_user_is_one_line(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An example is the claim of a run of somebody whose umask is 077."""
    folder = Folder(str(tmp_path))
    folder.write("a/b", b"1")

    def denied_stub(path: str, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    for name in ("ls", "cat_file", "rm"):
        monkeypatch.setattr(folder.fs, name, denied_stub)
    ask = {"list": lambda: folder.names("a"), "read": lambda: folder.read("a/b"), "remove": lambda: folder.remove("a")}
    said = refusal(ask[verb])
    assert said.startswith(f"cannot {verb} '{tmp_path}/a")
    assert said.endswith(": Permission denied. Check its permissions.")


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to itself", "link to nowhere"])
def test_what_is_no_file_is_not_there_to_read_and_can_be_removed(kind: str, tmp_path: Path):
    folder, path = Folder(str(tmp_path)), tmp_path / "x"
    put_no_file(kind, path)
    assert folder.read_if_there("x") is None
    assert folder.size("x") is None
    for ask in (folder.open, lambda name: folder.read_all([name])):
        with pytest.raises(FileNotFoundError):
            ask("x")
    folder.remove("x")
    assert folder.names() == set()


def test_a_link_to_a_folder_is_removed_and_the_folder_stays(tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "there")
    Folder(str(tmp_path)).remove("x")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_an_empty_folder_goes_with_what_it_was_made_in(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    folder = Folder(str(tmp_path / "mine/a/b"))
    folder.write("x", b"1")
    folder.remove_if_empty()
    assert folder.names() == {"x"}
    folder.remove("x")
    folder.remove_if_empty()
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_files_that_are_written_together_are_all_there_or_none(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "new"))
    folder.write_together({"a": b"1", "b/c": b"2"})
    assert all_files(tmp_path) == {"new/a": b"1", "new/b/c": b"2"}
    (tmp_path / "new" / "d").touch()
    with pytest.raises(UserError, match="cannot write"):
        folder.write_together({"a": b"other", "d/e": b"3"})
    assert all_files(tmp_path) == {"new/a": b"1", "new/b/c": b"2", "new/d": b""}
    store = Folder(f"memory://{tmp_path}/out")
    store.write_together({"a": b"1", "b/c": b"2"})
    assert (store.read("a"), store.read("b/c")) == (b"1", b"2")
