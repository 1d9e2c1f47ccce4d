"""Splits that a data source has: taken, named behind it, or refused."""

import logging
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pytest

from data.sources.examples import open_source
from data.sources.source_name import SourceName
from data.sources.source_options import SourceOptions
from tests.support.read_examples import load_examples
from tests.support.source_rows import ROWS, TASK, lines
from tests.support.written import refusal

pytestmark = pytest.mark.usefixtures("own_cache")


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
