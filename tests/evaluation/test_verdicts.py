"""The store of verdicts: what was added is there, whoever else writes, and a damaged file is said to be one."""

import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from evaluation.judging.verdicts import Verdict, Verdicts
from tests.support.commands import ROOT

ONE = Verdict(
    "key", "judge", "t" * 64, "p" * 64, "AB", "**A** \x00 שלום 🙂", "A", "stop", 120, 1, "http://host/v1", 1700000000.25
)


def numbered(numbers: range) -> list[Verdict]:
    return [replace(ONE, key=f"key {n}", raw="A") for n in numbers]


def test_a_verdict_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    silent = replace(ONE, key="other", raw="", verdict="?", input_tokens=None, output_tokens=None)
    verdicts = Verdicts(str(tmp_path / "not" / "yet"))
    assert verdicts.find(["key"]) == {}
    assert list(tmp_path.iterdir()) == []  # nothing is made before there is something to keep
    verdicts.add([ONE, silent])
    for found in (verdicts, Verdicts(str(tmp_path / "not" / "yet"))):
        assert found.find(["key", "other", "third"]) == {"key": ONE, "other": silent}
        assert found.find([]) == {}


def test_any_number_of_keys_can_be_looked_up(tmp_path: Path) -> None:
    verdicts = Verdicts(str(tmp_path))
    many = numbered(range(1501))
    verdicts.add(many)
    assert verdicts.find([verdict.key for verdict in many]) == {verdict.key: verdict for verdict in many}


def test_the_first_verdict_on_a_question_stays(tmp_path: Path) -> None:
    verdicts, later = Verdicts(str(tmp_path)), Verdicts(str(tmp_path))
    verdicts.add([ONE])
    later.add([replace(ONE, raw="B", verdict="B")])
    assert verdicts.find(["key"]) == {"key": ONE}


WRITER = """
import sys
from evaluation.judging.verdicts import Verdict, Verdicts
store, first, end = sys.argv[1:]
verdicts = Verdicts(store)
for n in range(int(first), int(end)):
    verdicts.add([Verdict(f"key {n}", "judge", "t", "p", "AB", first, "A", "stop", 1, 1, "", 0.0)])
"""


@pytest.mark.seconds
def test_processes_that_write_at_once_do_no_harm(tmp_path: Path) -> None:
    """Three begin with no file; their keys overlap."""
    ranges = [(0, 30), (20, 50), (10, 40)]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(a), str(b)], cwd=ROOT) for a, b in ranges
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    found = Verdicts(str(tmp_path)).find([f"key {n}" for n in range(50)])
    assert len(found) == 50
    for n in range(50):
        assert found[f"key {n}"].raw in {str(a) for a, b in ranges if a <= n < b}


def test_a_write_that_died_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    """A journal beside the file is what a killed process leaves; here a copy taken in the middle of a transaction."""
    verdicts = Verdicts(str(tmp_path / "a"))
    verdicts.add(numbered(range(50)))
    connection = sqlite3.connect(verdicts.path)
    connection.execute("PRAGMA cache_size = 1")  # pages go to the file before the commit
    connection.execute("BEGIN")
    connection.execute("UPDATE verdicts SET raw = ?", ("lost " * 500,))
    (tmp_path / "b").mkdir()
    for name in ("verdicts.sqlite", "verdicts.sqlite-journal"):
        (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    connection.close()
    assert (tmp_path / "b" / "verdicts.sqlite").read_bytes() != verdicts.path.read_bytes()
    there = {verdict.key: verdict for verdict in numbered(range(50))}
    assert Verdicts(str(tmp_path / "b")).find(there) == there


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "text":
        content = bytearray(b"this is no database, " * 100)
    elif how == "cut":
        content = content[: len(content) // 2]
    else:
        content[4096:12000] = b"\xff" * (12000 - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["text", "cut", "overwritten"])
def test_a_damaged_file_is_refused_before_anything_is_paid_for(tmp_path: Path, how: str) -> None:
    verdicts = Verdicts(str(tmp_path))
    verdicts.add(numbered(range(500)))
    verdicts.close()
    damaged(verdicts.path, how)
    before = verdicts.path.read_bytes()
    with pytest.raises(UserError, match=rf"'{verdicts.path}' is damaged \([^\n]+\). Restore it from a copy, or move"):
        Verdicts(str(tmp_path))
    assert verdicts.path.read_bytes() == before


@pytest.mark.parametrize("statement", ["CREATE TABLE other (x)", "PRAGMA user_version = 99", "PRAGMA user_version = 1"])
def test_another_programs_database_is_left_alone(tmp_path: Path, statement: str) -> None:
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as connection:
        connection.execute(statement)
    before = (tmp_path / "verdicts.sqlite").read_bytes()
    with pytest.raises(UserError, match=r"holds no verdicts of this version \(it has \d+, this program writes 2\)"):
        Verdicts(str(tmp_path))
    assert (tmp_path / "verdicts.sqlite").read_bytes() == before


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("raw", None, "NoneType"),
        ("raw", b"\xff", "bytes"),
        ("raw", 5, "int"),
        ("input_tokens", "x", "str"),
        ("output_tokens", 1.5, "float"),
        ("base_url", None, "NoneType"),
        ("finish_reason", None, "NoneType"),
        ("time", "now", "str"),
    ],
)
def test_a_row_of_other_types_is_damage(tmp_path: Path, column: str, value: Any, kind: str) -> None:
    """SQLite's own check passes."""
    Verdicts(str(tmp_path)).add([ONE])
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as connection:
        connection.execute(f"UPDATE verdicts SET {column} = ?", (value,))
    with pytest.raises(UserError, match=rf"sqlite' is damaged \({column} of a verdict is {kind}\). Restore it from a"):
        Verdicts(str(tmp_path)).find(["key"])


def test_text_that_is_none_is_damage_and_other_columns_are_another_version(tmp_path: Path) -> None:
    Verdicts(str(tmp_path)).add([ONE])
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as connection:
        connection.execute("UPDATE verdicts SET raw = CAST(x'fffe41' AS TEXT)")
    with pytest.raises(UserError, match=r"sqlite' is damaged \(.*codec can't decode byte 0xff"):
        Verdicts(str(tmp_path)).find(["key"])
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as connection:
        connection.execute("ALTER TABLE verdicts DROP COLUMN raw")
    with pytest.raises(UserError, match="holds no verdicts of this version"):
        Verdicts(str(tmp_path)).find(["key"])


def test_a_store_of_verdicts_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot be kept in 's3://bucket/store': a database needs a file system"):
        Verdicts("s3://bucket/store")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .* Not a directory. Check the path"):
        Verdicts(str(tmp_path / "file" / "store")).add([ONE])
    monkeypatch.setattr("evaluation.judging.verdicts.PATIENCE", 0.05)
    verdicts = Verdicts(str(tmp_path))
    verdicts.add([ONE])
    with sqlite3.connect(verdicts.path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"cannot use .* \(database is locked\). Check .* no other program"):
            verdicts.add(numbered(range(1)))
