"""Data sources of several files, and packed ones."""

import gzip
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from data.sources import data_files
from data.sources.examples import open_source
from tests.support.read_examples import load_examples
from tests.support.source_rows import ROWS, TASK, lines
from tests.support.written import refusal

pytestmark = pytest.mark.usefixtures("own_cache")


def packed(content: bytes, ending: str) -> bytes:
    codec = {".gz": "gzip", ".zst": "zstd"}[ending]
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as out:
        out.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("streaming", [False, True])
def test_packed_files_are_what_they_hold(tmp_path: Path, name: str, ending: str, streaming: bool):
    content = {
        "a.jsonl": lines(ROWS[:5]),
        "a.json": json.dumps(ROWS[:5]).encode(),
        "a.csv": b"prompt,completion\n" + b"".join(f"p{i},c{i}\n".encode() for i in range(5)),
    }[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / f"{name}{ending}").write_bytes(packed(content, ending))
    plain, found = (list(open_source(str(tmp_path / n), TASK, streaming=streaming)) for n in (name, f"{name}{ending}"))
    assert found == plain
    assert len(found) == 5


def test_a_packed_file_that_changes_is_unpacked_again(tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    for number in (3, 4):
        path.write_bytes(gzip.compress(lines(ROWS[:number])))
        assert len(load_examples(str(path), TASK)) == number


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("a.jsonl.gz", b"no gzip", "cannot unpack '"),
        ("a.jsonl.gz", gzip.compress(lines(ROWS))[:-30], "cannot unpack '"),
        ("a.jsonl.zst", packed(lines(ROWS), ".zst")[:-9], "cannot unpack '"),
        ("a.jsonl.gz", gzip.compress(b""), "has no rows."),
        ("a.parquet.gz", b"x", "expected a file ending in"),
    ],
    ids=["no gzip", "a cut gzip", "a cut zstd", "an empty one", "Parquet"],
)
def test_a_packed_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes, phrase: str):
    (tmp_path / name).write_bytes(content)
    message = refusal(lambda: load_examples(str(tmp_path / name), TASK))
    assert phrase in message
    assert str(tmp_path / name) in message
    assert not list((tmp_path / "cache").rglob("tmp*"))


def test_globs_and_folders_are_their_files_in_the_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(lines(ROWS))
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "part-2.jsonl").write_bytes(lines(ROWS[40:]))
    (folder / "part-0.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[:20])))
    (folder / "part-1.json").write_bytes(lines(ROWS[20:40]))  # JSON Lines too
    (folder / "part-3.jsonl").write_bytes(b"")
    (folder / "README.md").write_text("# Parts")
    (folder / ".hidden.jsonl").write_bytes(lines(ROWS[:1]))
    expected = load_examples(str(whole), TASK)
    assert load_examples(str(folder), TASK) == expected
    assert load_examples(f"{folder}/part-*.json*", TASK) == expected
    assert load_examples(f"{tmp_path}/part?/**/part-*", TASK) == expected
    monkeypatch.chdir(tmp_path)
    assert load_examples("parts", TASK) == load_examples("parts/*.json*", TASK) == expected
    in_order = [e.prompt for e in open_source(str(folder), TASK, streaming=True)]
    assert in_order == [row["prompt"] for row in ROWS]


def test_what_is_not_read_of_a_folder_and_what_is_read_as_one_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    folder = f"{tmp_path}/parts"
    for name in ("train.jsonl", "dev.jsonl", "sub/a.jsonl", "sub/more/b.jsonl", "docs/x.md", ".git/a.jsonl"):
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lines(ROWS[:3]))
    for dataset, left in ((folder, ["sub/ (2)"]), (f"{folder}/*.jsonl", [])):
        caplog.clear()
        open_source(dataset, TASK)
        said = [record.getMessage() for record in caplog.records if record.name == data_files.__name__]
        assert said == [
            *(f"data set '{dataset}': files that are not read: {name}" for name in left),
            f"data set '{dataset}': train.jsonl and dev.jsonl are read as one",
        ]
    for number in range(11):
        Path(folder, f"{number:02}.md").write_text("")
    open_source(folder, TASK)
    assert "files that are not read: 00.md, " in caplog.text
    assert "09.md and 2 more\n" in caplog.text


def test_a_folder_of_parquet_with_an_empty_part(tmp_path: Path):
    table = pa.Table.from_pylist(ROWS)
    for number, part in enumerate((table[:30], table[30:30], table[30:])):
        pq.write_table(part, tmp_path / f"{number}.parquet")
    assert {e.prompt for e in load_examples(str(tmp_path), TASK)} == {row["prompt"] for row in ROWS}


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:2]))
    (tmp_path / "b.csv").write_text("prompt,completion\np,c\n")
    assert "has files of different formats: a.jsonl, b.csv." in refusal(lambda: load_examples(str(tmp_path), TASK))
    (tmp_path / "c.csv").write_text("completion,prompt\nc,p\n")
    message = refusal(lambda: load_examples(f"{tmp_path}/*.csv", TASK))
    assert message == "'b.csv' and 'c.csv' have their columns in different orders. Give files of one kind, by a glob."
    message = refusal(lambda: load_examples(f"{tmp_path}/*.parquet", TASK))
    assert message == f"no file matches the data set '{tmp_path}/*.parquet'. Correct the pattern."


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".json"])
def test_files_whose_columns_differ_are_refused_with_what_differs(tmp_path: Path, ending: str):
    others = [{"prompt": "p", "answer": "c", "source": "web"}]
    for number, rows in enumerate((ROWS[:3], ROWS[3:5], others)):
        path = tmp_path / f"{number}{ending}"
        if ending == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif ending == ".csv":
            pyarrow.csv.write_csv(pa.Table.from_pylist(rows), path)
        else:
            path.write_text(json.dumps(rows))
    assert refusal(lambda: load_examples(str(tmp_path), TASK)) == (
        f"'0{ending}' and '2{ending}' have different columns: only '0{ending}' has completion; only '2{ending}' has "
        "answer, source. Give files of one kind, by a glob."
    )
    assert len(load_examples(f"{tmp_path}/[01]*", TASK)) == 5


def test_what_looks_like_a_file_is_no_name_of_the_hub():
    local = ["a.jsonl", "a.csv.zst", "/a", "./a", "~/a", "a/*.parquet", "x/part-[0-9]"]
    assert [name for name in [*local, "facts", "me/data", "data"] if data_files.looks_local(name)] == local
