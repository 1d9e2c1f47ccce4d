"""Where a command writes the one file that it was asked for, and with which permissions."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.places import place_of, refuse_foreign
from data.storage import Folder, new_file
from tests.support.written import all_files, refusal, write_set


@pytest.fixture
def _umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_umask")
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    Folder(str(tmp_path)).write("a/b.json", b"{}")
    handle, path = new_file(str(tmp_path))
    os.close(handle)
    assert [os.stat(file).st_mode & 0o777 for file in (tmp_path / "a" / "b.json", path)] == [0o640, 0o640]


def test_a_foreign_file_is_refused_and_one_of_ours_is_not(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_bytes(b"mine")
    folder, name = place_of(str(tmp_path / "page.html"), "--html", "page.html")
    assert "page.html' is there already, and not of this command" in refusal(
        lambda: refuse_foreign(folder, name, "--html", lambda content: content == b"ours")
    )
    assert "is there already" in refusal(lambda: refuse_foreign(folder, name, "--html"))
    (tmp_path / "page.html").write_bytes(b"ours")
    refuse_foreign(folder, name, "--html", lambda content: content == b"ours")
    refuse_foreign(folder, "new.html", "--html")


def test_a_file_is_known_by_its_beginning_without_reading_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.html").write_bytes(b"ours, and more")
    monkeypatch.setattr(Folder, "read", None)
    refuse_foreign(Folder(str(tmp_path)), "page.html", "--html", lambda content: content == b"ours", 4)


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.html")
    (tmp_path / "device.html").symlink_to("/dev/zero")
    for path in ("pipe.html", "device.html"):
        folder, name = place_of(str(tmp_path / path), "--html", "page.html")
        assert "is there already" in refusal(lambda: refuse_foreign(folder, name, "--html", lambda _: True))  # noqa: B023  # called at once


def test_links_are_followed_to_the_set_that_they_lead_to(tmp_path: Path) -> None:
    write_set(str(tmp_path / "set"))
    before = all_files(tmp_path / "set")
    (tmp_path / "page.html").symlink_to(tmp_path / "set" / "manifest.json")
    (tmp_path / "folder").symlink_to(tmp_path / "set")
    for path in ("page.html", "folder/rejects.parquet", "set/shard-00000.parquet"):
        folder, name = place_of(str(tmp_path / path), "--html", "page.html")
        said = refusal(lambda: refuse_foreign(folder, name, "--html", lambda content: True))  # noqa: B023  # called at once
        assert "is there already, in a directory with a negative set" in said
    assert all_files(tmp_path / "set") == before


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    for path in (f"{tmp_path}", f"{tmp_path}/", f"{tmp_path}/new/"):
        assert "is a directory. Give a file, e.g. " in refusal(lambda: place_of(path, "--html", "page.html"))  # noqa: B023  # called at once


def test_nothing_is_written_that_a_reader_of_the_set_would_take_for_a_shard(tmp_path: Path) -> None:
    write_set(str(tmp_path / "set"))
    (tmp_path / "page.html").symlink_to(tmp_path / "set" / "shard-00009.parquet")
    folder, name = place_of(str(tmp_path / "page.html"), "--html", "page.html")
    said = refusal(lambda: refuse_foreign(folder, name, "--html", lambda content: True))
    assert said.endswith(
        "shard-00009.parquet' would be taken for a shard of the negative set there. Choose another file."
    )
