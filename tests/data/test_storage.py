"""data/storage.py: folders on a file system and on an object store."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.storage import Folder
from tests.support.commands import ROOT
from tests.support.written import all_files, refusal


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
def test_what_is_another_users_is_one_line(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Such as the claim of a run of somebody whose umask is 077."""
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


@pytest.mark.seconds
def test_a_command_that_reads_a_parquet_file_last_ends_in_good_order(tmp_path: Path):
    """By `pq.read_table` every fourth of these interpreters aborted at their end."""
    pq.write_table(pa.table({"a": list(range(100)), "b": [["x"] * 3] * 100}), tmp_path / "t.parquet")
    code = "import sys; from data.parquet import *; read_parquet(open(sys.argv[1], 'rb').read())"
    for _ in range(8):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "t.parquet")], cwd=ROOT, check=True, capture_output=True
        )


@pytest.mark.parametrize("room", ["data", "negatives_gen", "trainer", "evaluation"])
def test_no_other_module_reads_a_parquet_file_by_read_table(room: str):
    calls = [path for path in (ROOT / room).rglob("*.py") if ".read_table(" in path.read_text()]
    assert calls == []
