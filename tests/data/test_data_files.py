"""Data sources of several files, packed ones, saved data sets, and splits that a source has or is given."""

import gzip
import hashlib
import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from data.sources import data_files, facts, source_options
from data.sources.examples import Example, fingerprint, open_source
from data.sources.source_name import SourceName
from data.sources.source_options import SourceOptions
from data.sources.splits import in_turns, num_train
from tests.support.read_examples import load_examples
from tests.support.written import refusal

TASK = "prompt-completion"
ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(60)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def packed(content: bytes, ending: str) -> bytes:
    codec = {".gz": "gzip", ".zst": "zstd"}[ending]
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as out:
        out.write(content)
    return sink.getvalue().to_pybytes()


def said(examples: Sequence[Example]) -> list[tuple[str, str]]:
    return [(e.prompt, e.split) for e in examples]


# Files


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


# Splits that a source has


def test_a_folder_whose_names_say_train_and_test_has_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "train-00000.jsonl").write_bytes(lines(ROWS[:6]))
    (tmp_path / "test-00000.jsonl").write_bytes(lines(ROWS[6:9]))
    (tmp_path / "validation.jsonl").write_bytes(lines(ROWS[9:]))
    caplog.set_level(logging.INFO)
    source = open_source(str(tmp_path), TASK)
    assert {(e.prompt, e.split) for e in source} == {(f"p{i}", "train" if i < 6 else "test") for i in range(9)}
    assert source.summary == "9 rows: 6 train, 3 held out"
    assert "files that are not read: validation.jsonl" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("other", ["test", "validation"])
def test_a_saved_data_set_is_read_with_its_splits(
    tmp_path: Path, streaming: bool, other: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    alone = datasets.Dataset.from_list(ROWS)
    alone.save_to_disk(str(tmp_path / "alone"))
    parts: Any = {"train": datasets.Dataset.from_list(ROWS[:6]), other: datasets.Dataset.from_list(ROWS[6:8])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    found = {
        name: open_source(str(tmp_path / name), TASK, streaming=streaming) for name in ("alone", "both", "a.jsonl")
    }
    assert list(found["alone"]) == list(found["a.jsonl"])
    assert [found[name].own_splits for name in found] == [False, True, False]
    assert {(e.prompt, e.split) for e in found["both"]} == {(f"p{i}", "train" if i < 6 else "test") for i in range(8)}
    assert ("its split 'validation' stands for the test split" in caplog.text) == (other == "validation")
    for half, number in (("train", 6), ("test", 2)):
        assert len(list(open_source(str(tmp_path / "both"), TASK, half, streaming=streaming))) == number


def test_a_saved_data_set_that_is_damaged_is_refused(tmp_path: Path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved/data-00000-of-00001.arrow").write_bytes(b"")
    assert f"cannot read '{tmp_path}/saved' as a data set that was saved: " in refusal(
        lambda: load_examples(str(tmp_path / "saved"), TASK)
    )


def test_the_hubs_splits_are_taken_and_a_share_that_is_given_cuts_train(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    parts = {"train": ROWS[:10], "test": ROWS[10:13], "extra": ROWS[13:]}
    hub = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub)
    own = open_source("someone/data", TASK)
    assert (own.own_splits, own.summary) == (True, "13 rows: 10 train, 3 held out")
    assert "splits that are not read: extra" in caplog.text
    shared = open_source("someone/data", TASK, test_share=0.5)
    unread = "not read: the test split of 'someone/data' (3 rows)"
    assert (shared.own_splits, shared.summary) == (False, f"10 rows: 5 train, 5 held out; {unread}")
    assert {e.prompt for e in shared} == {f"p{i}" for i in range(10)}
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"task": TASK, "own_splits": True}),
        ({"test_share": 0.5}, {"task": TASK}),  # as it was before a source's own splits were read
        ({"test_share": 0.1}, {"task": TASK, "test_share": 0.1}),
        ({"test_dataset": "facts"}, {"task": TASK, "test_dataset": "facts"}),
    ]
    for options, described in cases:
        chosen = SourceOptions(**options)
        source = chosen.open_source("someone/data", "all")
        halves = {"halves_sha256": source.halves_sha256} if source.own_splits else {}
        assert chosen.describe_source(source) == {**described, **halves}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({"extra": hub["extra"]}))
    assert refusal(lambda: load_examples("a/b", TASK)) == (
        "data set 'a/b' has neither a split 'train' nor 'test'; it has extra. Name the one that you mean: --dataset "
        "a/b:extra."
    )


# Splits under the source's own names

ULTRACHAT = {"train_sft": ROWS[:6], "test_sft": ROWS[6:9], "train_gen": ROWS[9:20], "test_gen": ROWS[20:22]}


@pytest.fixture(params=["saved", "folder", "hub"])
def ultrachat(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set with splits of these names."""
    found = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in ULTRACHAT.items()})
    if request.param == "hub":
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: found)
        return "someone/chats"
    folder = tmp_path / "chats"
    if request.param == "saved":
        found.save_to_disk(str(folder))
    else:
        folder.mkdir()
        for name, rows in ULTRACHAT.items():
            (folder / f"{name}-00000-of-00002.jsonl").write_bytes(lines(rows[:2]))
            (folder / f"{name}-00001-of-00002.jsonl").write_bytes(lines(rows[2:]))
    return str(folder)


def places(source: Any) -> set[tuple[str, str]]:
    return {(e.prompt, e.split) for e in source}


def test_a_split_is_named_behind_its_data_set(ultrachat: str, caplog: pytest.LogCaptureFixture):
    options = SourceOptions(test_dataset=f"{ultrachat}:test_sft")
    source = options.open_source(f"{ultrachat}:train_sft", "all", locate=lambda name: f"{name}")
    assert places(source) == {(f"p{i}", "train" if i < 6 else "test") for i in range(9)}
    assert source.summary == "9 rows: 6 train, 3 held out"
    assert options.describe_source(source)["test_dataset"] == f"{ultrachat}:test_sft"
    alone = open_source(f"{ultrachat}:test_sft", TASK)
    assert alone.summary == "3 rows: 1 train, 2 held out"
    assert {prompt for prompt, _ in places(alone)} == {"p6", "p7", "p8"}
    assert "not read" not in caplog.text


def test_a_split_that_there_is_not_is_refused_with_those_that_are(ultrachat: str):
    for name in ("train", "sft"):
        message = refusal(lambda name=name: load_examples(f"{ultrachat}:{name}", TASK))
        assert message.startswith(f"data set '{ultrachat}:{name}': ")
        assert "train_sft" in message
        assert "test_gen" in message


def test_only_what_has_splits_takes_a_name_of_one(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "b:c.jsonl").write_bytes(lines(ROWS[:2]))
    assert len(load_examples(str(tmp_path / "b:c.jsonl"), TASK)) == 2
    for files in (f"{tmp_path}/a.jsonl", f"{tmp_path}/*.jsonl"):
        message = refusal(lambda files=files: load_examples(f"{files}:train", TASK))
        assert message == f"data set '{files}' is no folder, so it has no split 'train'. Leave ':train' out."
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "alone"))
    assert len(load_examples(f"{tmp_path}/alone:train", TASK)) == 60  # as `datasets` calls what has no splits
    message = refusal(lambda: load_examples(f"{tmp_path}/alone:dev", TASK))
    assert message == f"data set '{tmp_path}/alone:dev': there is no split 'dev'; it has train. Correct the name."


def test_without_a_name_splits_of_other_names_are_not_guessed(tmp_path: Path):
    parts: Any = {name: datasets.Dataset.from_list(rows) for name, rows in ULTRACHAT.items()}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "chats"))
    assert refusal(lambda: load_examples(str(tmp_path / "chats"), TASK)) == (
        f"data set '{tmp_path}/chats' has neither a split 'train' nor 'test'; it has train_sft, test_sft, train_gen, "
        f"test_gen. Name the one that you mean: --dataset {tmp_path}/chats:train_sft and what is held out as "
        f"--test_dataset {tmp_path}/chats:test_sft."
    )


@pytest.mark.parametrize("only", ["test", "validation"])
@pytest.mark.parametrize("streaming", [False, True])
def test_of_a_source_without_a_train_split_the_one_that_it_has_can_be_named(tmp_path: Path, only: str, streaming: bool):
    datasets.DatasetDict({only: datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "set"))
    saved = str(tmp_path / "set")
    assert refusal(lambda: open_source(saved, TASK, streaming=streaming)) == (
        f"data set '{saved}' has no split 'train' to take rows from. Name the one that it has: --dataset "
        f"{saved}:{only}, or give it as --test_dataset."
    )
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    assert list(open_source(f"{saved}:{only}", TASK, streaming=streaming)) == list(
        open_source(str(tmp_path / "a.jsonl"), TASK, streaming=streaming)
    )
    beside = open_source("facts", TASK, "test", streaming=streaming, test_dataset=saved)
    assert places(beside) == {(row["prompt"], "test") for row in ROWS}


def test_a_configuration_of_a_hub_data_set_is_a_part_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`datasets` itself reads a repository of two configurations, from a folder in the hub's stead."""
    hub = tmp_path / "hub"
    for config, rows in (("en", ROWS[:4]), ("de", ROWS[4:7])):
        (hub / config).mkdir(parents=True)
        (hub / config / "train.jsonl").write_bytes(lines(rows))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/train.jsonl\n" for name in ("en", "de"))
    (hub / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    load = datasets.load_dataset

    def from_folder(name: str, *more: Any, **options: Any) -> Any:
        return load(str(hub) if name == "someone/texts" else name, *more, **options)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    for name, numbers in (("someone/texts/de", range(4, 7)), ("someone/texts/en:train", range(4))):
        source = SourceOptions().open_source(name, "all")
        assert {e.prompt for e in source} == {f"p{i}" for i in numbers}
    assert refusal(lambda: load_examples("someone/texts", TASK)) == (
        "data set 'someone/texts' has several configurations: ['en', 'de']. Name one: 'someone/texts/NAME'."
    )
    assert "(BuilderConfig 'fr' not found. Available: ['en', 'de'])" in refusal(
        lambda: load_examples("someone/texts/fr", TASK)
    )


@pytest.mark.parametrize(
    ("written", "where", "config", "split"),
    [
        ("facts", "facts", None, None),
        ("me/data", "me/data", None, None),
        ("me/data:train_sft", "me/data", None, "train_sft"),
        ("me/data/en", "me/data", "en", None),
        ("me/data/20231101.en:train", "me/data", "20231101.en", "train"),
        ("data:test", "data", None, "test"),
        ("./a/b", "./a/b", None, None),
        ("/a/b/c:dev", "/a/b/c", None, "dev"),
        ("here/are/files", "here/are/files", None, None),
        ("here/are/files:dev", "here/are/files", None, "dev"),
        ("here/are/files:odd", "here/are/files:odd", None, None),
        ("a:b.jsonl", "a:b.jsonl", None, None),
        ("s3://a/b.jsonl", "s3://a/b.jsonl", None, None),
    ],
)
@pytest.mark.parametrize("by_root", [False, True])
def test_the_parts_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_root: bool, written: str, where: str, config: Any, split: Any
):
    for name in ("files", "files:odd"):
        (tmp_path / "here/are" / name).mkdir(parents=True)
    if by_root:
        monkeypatch.setenv("NEGATIVES_GEN_ROOT", str(tmp_path))
    else:
        monkeypatch.chdir(tmp_path)
    name = SourceName.of(written)
    assert name == SourceName(where, config, split)
    assert name.located(str) == written
    assert name.located(lambda where: f"/x/{where}") == f"/x/{written}"


# Splits that are asked for


def test_another_data_set_holds_the_test_rows(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:10]))
    (tmp_path / "b.jsonl").write_bytes(lines([*ROWS[10:12], ROWS[0]]))
    options: dict[str, Any] = {"test_dataset": str(tmp_path / "b.jsonl")}
    source = open_source(str(tmp_path / "a.jsonl"), TASK, **options)
    found = list(source)
    both = "13 rows: 10 train, 3 held out; 1 of train is held out too"
    assert source.summary == both
    assert {(e.prompt, e.split) for e in found if e.problem is None} >= {("p10", "test"), ("p11", "test")}
    assert [e.problem for e in found if e.problem] == [("duplicate", "same prompt and response as an earlier row")]
    only = open_source(str(tmp_path / "a.jsonl"), TASK, "test", **options)
    assert {e.prompt for e in only} == {"p10", "p11", "p0"}
    assert only.summary == f"{both}; read: 3 of test"
    assert only.fingerprint == fingerprint(only)
    message = refusal(lambda: open_source("facts", TASK, test_share=0.1, **options))
    assert message.startswith("give either --test_share or --test_dataset, not both")
    (tmp_path / "c.jsonl").write_bytes(lines([{"prompt": "p"}]))
    message = refusal(lambda: open_source("facts", TASK, test_dataset=str(tmp_path / "c.jsonl")))
    assert f"'{tmp_path}/c.jsonl' has no column 'completion'" in message


@pytest.mark.parametrize("streaming", [False, True])
def test_of_sources_with_splits_those_that_are_not_read_are_named(tmp_path: Path, streaming: bool):
    folder, alone = tmp_path / "folder", tmp_path / "a.jsonl"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(lines(ROWS[:6]))
    (folder / "test.jsonl").write_bytes(lines(ROWS[6:8]))
    alone.write_bytes(lines(ROWS[20:30]))
    size = {} if streaming else {"train": " (6 lines)", "test": " (2 lines)"}
    cases: list[tuple[Path, dict[str, Any], list[str], set[str]]] = [
        (alone, {"test_dataset": str(folder)}, ["train"], {"p6", "p7"}),
        (folder, {"test_dataset": str(alone)}, ["test"], {f"p{i}" for i in range(20, 30)}),
        (folder, {"test_share": 0.0}, ["test"], set()),
        (folder, {"test_dataset": str(folder)}, ["test", "train"], {"p6", "p7"}),
        (folder, {}, [], {"p6", "p7"}),
    ]
    for dataset, options, unread, held_out in cases:
        source = open_source(str(dataset), TASK, streaming=streaming, **options)
        left = ", ".join(f"the {name} split of '{folder}'{size.get(name, '')}" for name in unread)
        assert source.summary.partition("; not read: ")[2] == left
        assert {e.prompt for e in source if e.split == "test"} == held_out
    same = open_source("facts", TASK, "test", streaming=streaming, test_dataset="facts")  # two parts that are equal
    assert {e.prompt for e in same} == {row["prompt"] for row in facts.examples()}


def test_rows_of_both_halves_are_counted(tmp_path: Path):
    for train, test, said in ((ROWS[:6], ROWS[6:8], ""), (ROWS[:6], ROWS[5:8], "; 1 of train is held out too"),
                              ([*ROWS[:6], ROWS[5]], ROWS[4:8], "; 3 of train are held out too")):  # fmt: skip
        (tmp_path / "train.jsonl").write_bytes(lines(train))
        (tmp_path / "test.jsonl").write_bytes(lines(test))
        rows = f"{len(train) + len(test)} rows: {len(train)} train, {len(test)} held out"
        assert open_source(str(tmp_path), TASK).summary == rows + said


def test_a_row_that_changes_its_half_makes_another_job(tmp_path: Path):
    found = []
    for train, test in (([0, 1], [2]), ([0], [2, 1])):
        (tmp_path / "train.jsonl").write_bytes(lines([ROWS[i] for i in train]))
        (tmp_path / "test.jsonl").write_bytes(lines([ROWS[i] for i in test]))
        source = open_source(str(tmp_path), TASK)
        found.append((sorted((e.prompt, e.split) for e in source), SourceOptions().describe_source(source)))
    assert found[0] != found[1]
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_test_split_of_another_shape_leaves_train_readable(tmp_path: Path, streaming: bool):
    unlabelled = datasets.Dataset.from_list([{"prompt": "p"}])
    for name, test in (("saved", unlabelled), ("empty", datasets.Dataset.from_dict({"prompt": [], "completion": []}))):
        parts: Any = {"train": datasets.Dataset.from_list(ROWS[:6]), "test": test}
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / name))
    saved = str(tmp_path / "saved")
    options: dict[str, Any] = {"streaming": streaming}
    message = refusal(lambda: list(open_source(saved, TASK, **options)))
    assert message.startswith(f"the test split of data set '{saved}' has no column 'completion', which task")
    assert message.endswith(" Or hold out rows of its train split instead: --test_share.")
    assert {e.prompt for e in open_source(saved, TASK, "train", **options)} == {f"p{i}" for i in range(6)}
    assert len(list(open_source(saved, TASK, test_share=0.5, **options))) == 6
    message = refusal(lambda: list(open_source(str(tmp_path / "empty"), TASK, **options)))
    assert message.startswith(f"the test split of data set '{tmp_path}/empty' has no rows.")


@pytest.mark.parametrize(("share", "train"), [(0.5, 30), (0.1, 54), (0.25, 45), (0.0, 60), (0.99, 0), (1 / 3, 40)])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_share_of_the_rows_is_held_out_by_their_content(tmp_path: Path, share: float, train: int, streaming: bool):
    rows = list(ROWS)
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    random.Random(1).shuffle(rows)
    (tmp_path / "b.jsonl").write_bytes(lines(rows))
    found, other = (
        list(open_source(str(tmp_path / name), TASK, streaming=streaming, test_share=share))
        for name in ("a.jsonl", "b.jsonl")
    )
    assert set(said(found)) == set(said(other))
    held_out = {e.prompt for e in found if e.split == "test"}
    assert len(found) == 60
    by_hash = sorted(found, key=lambda e: hashlib.sha256(f"0:{e.id}".encode()).digest())
    if streaming:  # whose hash, as a fraction of all hashes, is not below the share that is left
        hashes = [int(hashlib.sha256(f"0:{e.id}".encode()).hexdigest()[:16], 16) / 2**64 for e in found]
        assert held_out == {e.prompt for e, fraction in zip(found, hashes, strict=True) if fraction >= 1 - share}
    else:  # the last ones by their hash
        assert said(found) == said(other)
        assert held_out == {e.prompt for e in by_hash[train:]}
    if share < 0.5:
        half = open_source(str(tmp_path / "a.jsonl"), TASK, "test", streaming=streaming)
        assert held_out <= {e.prompt for e in half}


# Of ROWS, those whose hash lies in the last half of all hashes, the ones in the last quarter first.
LAST_HALF = [
    *(1, 7, 11, 14, 15, 16, 20, 25, 28, 29, 30, 31, 35, 36, 39, 43, 49, 50, 52, 55),
    *(2, 10, 12, 24, 33, 40, 47, 51, 56, 58),
]


@pytest.mark.parametrize(("share", "of_stream"), [(0.5, LAST_HALF), (0.25, LAST_HALF[:20])])
def test_a_stream_holds_out_the_rows_that_a_table_does_but_for_those_between_their_bounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, share: float, of_stream: list[int]
):
    """One order, that of the hashes, is cut at a share of all hashes, or at a share of the rows that there are."""
    caplog.set_level(logging.INFO)
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    path, kept = str(tmp_path / "a.jsonl"), num_train(60, share)
    table, stream = (
        {e.prompt for e in SourceOptions(test_share=share).open_source(path, "test", streaming=streaming)}
        for streaming in (False, True)
    )
    assert stream == {f"p{number}" for number in of_stream}
    assert len(table) == 60 - kept
    assert table <= stream
    assert (table == stream) == (len(of_stream) == 60 - kept) == (share == 0.5)
    assert [record.getMessage() for record in caplog.records if record.name == source_options.__name__] == [
        f"{path}: 60 rows: {kept} train, {60 - kept} held out; read: {60 - kept} of test",
        f"{path}: rows of a stream: about {100 * share:g}% of them are held out",
    ]


def test_the_default_is_a_half_as_it_always_was(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:59]))
    plain, half = (open_source(str(tmp_path / "a.jsonl"), TASK, test_share=share) for share in (None, 0.5))
    assert list(plain) == list(half)
    assert plain.fingerprint == half.fingerprint
    assert plain.summary == "59 rows: 29 train, 30 held out"
    assert [e.split for e in plain] == [*["train", "test"] * 29, "test"]


def test_the_embedded_worlds_halves_are_those_of_every_set_made_before_0_7():
    found = {split: open_source("facts", TASK, split, limit) for split, limit in (("train", None), ("all", 100))}
    prints = {split: str(source.fingerprint)[:16] for split, source in found.items()}
    assert prints == {"train": "58cb8ec65f67f2e7", "all": "affc6946f001f8c9"}


@pytest.mark.parametrize("share", [-0.1, 1.0, 7.0])
def test_a_share_that_is_none_is_refused(share: float):
    assert "--test_share must be from 0 to below 1, got" in refusal(
        lambda: open_source("facts", TASK, test_share=share)
    )


@pytest.mark.parametrize(("train", "test"), [(4, 4), (4, 5), (9, 1), (90, 10), (0, 3), (3, 0), (1, 7)])
def test_both_halves_take_turns_so_that_a_limit_has_them_in_proportion(train: int, test: int):
    order = in_turns(train, test)
    assert sorted(order.tolist()) == list(range(train + test))
    is_train = order < train
    assert order[is_train].tolist() == list(range(train))
    assert order[~is_train].tolist() == list(range(train, train + test))
    shares = np.cumsum(is_train) / np.arange(1, train + test + 1)
    assert all(abs(s - train / (train + test)) * n <= 1 for n, s in enumerate(shares, start=1))


def test_no_rounding_moves_a_row():
    assert [num_train(10, share) for share in (0.1, 0.3, 0.7, 0.9)] == [9, 7, 3, 1]
    assert [num_train(count, 0.5) for count in range(5)] == [0, 0, 1, 1, 2]


def test_what_looks_like_a_file_is_no_name_of_the_hub():
    local = ["a.jsonl", "a.csv.zst", "/a", "./a", "~/a", "a/*.parquet", "x/part-[0-9]"]
    assert [name for name in [*local, "facts", "me/data", "data"] if data_files.looks_local(name)] == local
