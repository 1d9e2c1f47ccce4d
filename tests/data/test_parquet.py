"""data/parquet.py: no file of others is decoded that would take more memory than is stated."""

import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import parquet
from data.command.errors import UserError
from data.parquet import Unreadable, read_parquet
from data.sources.readers import open_rows
from data.sources.row_paths import Path as Place
from tests.support.commands import ROOT

TEXT = "x" * 10_000
NEEDED = [Place.of("prompt"), Place.of("completion")]
COUNT_THREADS = """
import os, sys
from data.parquet import parquet_file, read_columns, read_parquet

before = len(os.listdir("/proc/self/task"))
with open(sys.argv[1], "rb") as content:
    read_parquet(content.read())
with parquet_file(open(sys.argv[1], "rb")) as file:
    read_columns(file, ["a"])
print(len(os.listdir("/proc/self/task")) - before)
"""


def written(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MOST_BYTES", 1_000_000)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([TEXT] * 200),
        pa.array([[{"text": TEXT, "other": 1}] * 200]),
        pa.array([7] * 200_000, pa.int64()),
        pa.array([[7] * 300_000], pa.list_(pa.int32())),
        pa.array([str(n) * 3_000 for n in range(200)]),
        pa.nulls(300_000, pa.string()),
    ],
    ids=["one text often", "one text often in a list", "one number often", "a long list", "many texts", "many nulls"],
)
def test_a_small_file_of_many_values_is_refused(column: pa.Array) -> None:
    content = written(pa.table({"a": column}))
    assert len(content) < 20_000
    with pytest.raises(Unreadable, match=r"its values would take more than 0\.000931 GiB of memory"):
        read_parquet(content)


def test_a_parquet_file_that_fits_is_read_even_if_its_size_is_only_known_by_looking() -> None:
    """By the footer 60 texts have 20 kB at most; 59 are short."""
    table = pa.table({"a": [*("a" * n for n in range(59)), "x" * 20_000], "b": [[{"text": TEXT}]] * 60})
    assert read_parquet(written(table)).equals(table)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"text"])
def test_a_file_that_is_no_parquet_file_is_named(content: bytes) -> None:
    with pytest.raises(Unreadable, match=r"\w"):
        read_parquet(content)


def test_a_data_source_may_be_large_but_no_row_group_of_it(tmp_path: Path) -> None:
    """Each row group takes 600 kB where a million bytes are the bound."""
    path = tmp_path / "rows.parquet"
    table = pa.table({"prompt": [TEXT] * 180, "completion": ["y"] * 180})
    pq.write_table(table, path, compression="zstd", row_group_size=60)
    assert len(open_rows(str(path), NEEDED)["train"]) == 180
    with pytest.raises(Unreadable):
        read_parquet(path.read_bytes())
    pq.write_table(table, path, compression="zstd", row_group_size=120)
    with pytest.raises(UserError, match=r"^cannot read '.*' as parquet: its values would take more than"):
        open_rows(str(path), NEEDED)
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"^cannot read '.*' as parquet: "):
        open_rows(str(path), NEEDED)


@pytest.mark.seconds
def test_a_file_is_read_on_no_thread_but_ours(tmp_path: Path) -> None:
    """A thread of Arrow's that holds a Python file aborts an interpreter that ends."""
    (tmp_path / "t.parquet").write_bytes(written(pa.table({"a": [TEXT] * 20, "b": [["x"] * 3] * 20})))
    command = [sys.executable, "-c", COUNT_THREADS, str(tmp_path / "t.parquet")]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout == "0\n"


@pytest.mark.parametrize("room", ["data", "negatives_gen", "trainer", "evaluation"])
@pytest.mark.parametrize("call", [".read_table(", "ParquetFile(", "pre_buffer=True"])
def test_no_other_module_opens_a_parquet_file(room: str, call: str) -> None:
    calls = [path for path in (ROOT / room).rglob("*.py") if call in path.read_text()]
    assert calls == ([ROOT / "data/parquet.py"] if (room, call) == ("data", "ParquetFile(") else [])
