"""data/sources/readers.py and data/sources/examples.py: from files and streams to examples, split in two."""

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from data.schema import example_id
from data.sources import examples as sources
from data.sources import readers
from data.sources.examples import Example, fingerprint, open_source
from data.sources.tasks import dolly
from tests.support.read_examples import as_example, load_examples
from tests.support.written import refusal

ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(5)]
TASK = "prompt-completion"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, content: str | list[dict]) -> str:
    """A file of one of the supported formats, from rows or from its raw text."""
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(pa.Table.from_pylist(content), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return str(path)


def example(prompt: Any, response: Any) -> Example:
    return as_example(prompt, response, TASK, "test")


# Sources and splits


@pytest.mark.seconds
def test_dollys_15011_rows_split_into_7505_and_7506_whatever_their_order(tmp_path: Path):
    rows = [{"instruction": f"Do {i}.", "context": "", "response": f"Done {i}."} for i in range(15_011)]
    path = write(tmp_path / "a.jsonl", rows)
    halves = {split: load_examples(path, "dolly", split) for split in ("train", "test", "all")}
    random.Random(0).shuffle(rows)
    other = write(tmp_path / "b.jsonl", rows)

    assert {split: len(half) for split, half in halves.items()} == {"train": 7505, "test": 7506, "all": 15_011}
    assert halves["all"][::2] == [*halves["train"], halves["test"][-1]]
    assert halves["all"][1::2] == halves["test"][:-1]
    assert {split: {e.split for e in halves[split]} for split in ("train", "test")} == {
        "train": {"train"},
        "test": {"test"},
    }
    assert {e.id for e in halves["train"]}.isdisjoint(e.id for e in halves["test"])
    assert halves["all"] == load_examples(other, "dolly")
    in_train = {e.id for e in halves["train"]}
    head = [example_id(*dolly({"instruction": f"Do {i}.", "response": f"Done {i}."})) for i in range(1000)]
    assert 400 < sum(identifier in in_train for identifier in head) < 600


def test_limit_keeps_the_first_examples_of_the_split(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", ROWS)
    whole = load_examples(path, TASK)
    assert load_examples(path, TASK, limit=2) == whole[:2]
    assert [e.split for e in whole] == ["train", "test", "train", "test", "test"]
    assert load_examples(path, TASK, "test", limit=99) == [e for e in whole if e.split == "test"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.csv"])
def test_every_file_format_gives_the_same_examples(tmp_path: Path, name: str):
    found = load_examples(write(tmp_path / name, ROWS), TASK)
    assert {(e.prompt, e.response) for e in found} == {(row["prompt"], row["completion"]) for row in ROWS}
    assert [e.id for e in found] == [example_id(e.prompt, e.response) for e in found]


def test_the_cells_of_a_csv_stay_text(tmp_path: Path):
    cells = ["None", "N/A", "null", "nan", "", "text"]
    path = write(tmp_path / "a.csv", "prompt,completion\n" + "".join(f"p,{cell}\n" for cell in cells))
    assert sorted(e.response for e in load_examples(path, TASK)) == sorted(cells)


def test_a_path_may_start_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.jsonl", ROWS)
    assert len(load_examples("~/a.jsonl", TASK)) == len(ROWS)


def test_the_border_cuts_no_exact_duplicates(tmp_path: Path):
    rows = [{"prompt": "p", "completion": "c"}] * 4
    path = write(tmp_path / "a.jsonl", [*rows, *ROWS[:2]])
    copies = [e for e in load_examples(path, TASK) if e.prompt == "p"]
    assert [(e.split, e.problem is None) for e in copies] == [("test", True), *[("test", False)] * 3]
    assert {e.problem for e in copies[1:]} == {("duplicate", "same prompt and response as an earlier row")}
    read = {half: [e.problem is None for e in load_examples(path, TASK, half)] for half in ("train", "test")}
    assert read == {"train": [True], "test": [True, False, False, False, True]}
    assert [e.problem for e in load_examples(path, TASK, limit=2)] == [None, None]


def test_the_embedded_world_needs_no_file():
    train, test = load_examples("facts", TASK, "train"), load_examples("facts", TASK, "test")
    assert abs(len(train) - len(test)) <= 1
    assert train[0].prompt.startswith("Question: ")


def test_the_fingerprint_depends_on_the_examples_and_their_order():
    first, second = example("a", "b"), example("c", "d")
    prints = {fingerprint(e) for e in ([first, second], [second, first], [first])}
    assert len(prints) == 3
    assert fingerprint([first]) == fingerprint([example("a", "b")])


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("a.txt", "x", "expected a file ending in .jsonl, .json, .parquet, .csv, or packed in .gz or .zst."),
        ("a.jsonl", "", "has no rows."),
        ("a.jsonl", "\n\n", "has no rows."),
        ("a.csv", "prompt,completion\n", "has no rows."),
        ("a.json", "[]", "has no rows."),
        ("a.jsonl", '[\n{"prompt"\n', "no line of it is a JSON object (the first is not JSON: Expecting value"),
        ("a.jsonl", '[{"prompt": "a", "completion": "b"}]', "(the first is not a JSON object: it is list)"),
        ("a.json", '[{"prompt": "a", "completion": "b"}', "as json: "),
        ("a.csv", "prompt,completion\na,b\na,b,c\n", "as csv: Error tokenizing data."),
        ("a.parquet", "no parquet", "as parquet: Parquet"),
        (
            "a.csv",
            "prompt,answer\na,b\n",
            "has no column 'completion', which task 'prompt-completion' needs; it has: prompt, a",
        ),
        ("a.jsonl", '{"prompt": "a"}\n', "has no column 'completion', which task 'prompt-completion' needs; it has:"),
        (
            "a.jsonl",
            '{"instruction": "a", "output": "b"}\n',
            "instruction, output. --task alpaca reads such rows, or say which column it is: --columns prompt=COLUMN.",
        ),
        ("a.jsonl", '{"conversations": []}\n', "--task sharegpt reads such rows, or say which column it is"),
    ],
)
def test_an_unusable_file_is_refused_in_one_line_with_its_path(tmp_path: Path, name: str, content: str, phrase: str):
    path = write(tmp_path / name, content)
    message = refusal(lambda: load_examples(path, TASK))
    assert f"'{path}'" in message
    assert phrase in message
    assert "\n" not in message


@pytest.mark.parametrize("path", ["absent.jsonl", "/absent/file", "./absent"])
def test_a_missing_file_is_refused_without_asking_the_hub(path: str):
    assert refusal(lambda: load_examples(path, TASK)).startswith(f"data file '{path}' does not exist.")


def test_a_directory_is_refused_saying_what_to_give(tmp_path: Path):
    message = refusal(lambda: load_examples(str(tmp_path), TASK))
    assert message == (
        f"data set '{tmp_path}' is a directory without a file of .jsonl, .json, .parquet, .csv, or packed in .gz or "
        f".zst. Give files, a glob such as '{tmp_path}/**/*.jsonl', or a hub id."
    )


def test_an_unreachable_hub_data_set_is_refused_also_if_the_client_says_nothing(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = refusal(lambda: load_examples("someone/data", TASK))
    assert "data set 'someone/data' is neither 'facts' nor 'enquiries', nor a local file, nor a hub data set" in message
    assert "(ConnectionError)" in message


def test_unknown_names_and_limits_are_refused():
    assert "unknown task 'doly'. Did you mean 'dolly'?" in refusal(lambda: load_examples("facts", "doly"))
    assert refusal(lambda: load_examples("facts", TASK, "dev")) == (
        "unknown split 'dev'. Use one of train, test, all. A split of the data set's own is written behind its name: "
        "--dataset NAME:dev."
    )
    assert "limit must be at least 1, got 0" in refusal(lambda: load_examples("facts", TASK, limit=0))


# Batches and streams


def by_hash(examples: list[Example]) -> list[Example]:
    return sorted(examples, key=lambda e: hashlib.sha256(f"0:{e.id}".encode()).digest())


def test_a_source_reads_batches_gives_the_order_of_the_hash_and_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "BATCH", 7)
    rows = [{"prompt": f"p{i % 40}", "completion": f"c{i % 30}"} for i in range(200)]  # 120 of them distinct
    path = write(tmp_path / "a.jsonl", rows)
    ordered = by_hash([as_example(row["prompt"], row["completion"], TASK) for row in rows])
    least = {e.prompt: min(other.id for other in ordered if other.prompt == e.prompt) for e in ordered}
    first = by_hash(list({e.id: e for e in ordered if e.id == least[e.prompt]}.values()))
    in_train = {e.prompt for e in first[:20]}  # of 40, each with five rows
    train, test = ([e for e in ordered if (e.prompt in in_train) == kept] for kept in (True, False))
    expected = {"train": train, "test": test, "all": [e for pair in zip(train, test, strict=True) for e in pair]}
    for split, limit in [("train", None), ("test", 9), ("all", None), ("all", 9)]:
        source = open_source(path, TASK, split, limit)
        found = list(source)
        ids = [e.id for e in found]
        assert ids == [e.id for e in expected[split][:limit]]
        assert [e.problem is None for e in found] == [e.id not in ids[:i] for i, e in enumerate(found)]
        assert list(source) == found
        assert (source.num_examples, source.fingerprint) == (len(found), fingerprint(found))


def test_a_source_holds_one_batch_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "BATCH", 3)
    fetched: list[int] = []
    fetch = readers.Rows.fetch

    def counting(self: readers.Rows, numbers: list[int]) -> list[Any]:
        fetched.append(len(numbers))
        return fetch(self, numbers)

    monkeypatch.setattr(readers.Rows, "fetch", counting)
    source = open_source(write(tmp_path / "a.parquet", [*ROWS, *ROWS]), TASK)
    assert fetched == [3, 3, 3, 1]
    next(iter(source))
    assert fetched == [3, 3, 3, 1, 3]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.csv"])
def test_a_stream_keeps_the_order_of_the_file_and_splits_by_the_first_bit(tmp_path: Path, name: str):
    rows = [{"prompt": f"p{i % 8}", "completion": "c"} for i in range(12)]
    path = write(tmp_path / name, rows)
    source = open_source(path, TASK, streaming=True)
    examples = list(source)
    assert [e.prompt for e in examples] == [f"p{i % 8}" for i in range(12)]
    bits = [hashlib.sha256(f"0:{e.id}".encode()).digest()[0] >> 7 for e in examples]
    assert [e.split for e in examples] == [("train", "test")[bit] for bit in bits]
    assert set(bits) == {0, 1}
    assert [e.problem is None for e in examples] == [True] * 8 + [False] * 4
    assert list(source) == examples
    assert (source.num_examples, source.fingerprint) == (None, None)
    train, test = (list(open_source(path, TASK, half, streaming=True)) for half in ("train", "test"))
    assert (train, test) == ([e for e in examples if e.split == "train"], [e for e in examples if e.split == "test"])
    assert list(open_source(path, TASK, "test", limit=2, streaming=True)) == test[:2]
    assert {e.id for e in examples} == {e.id for e in load_examples(path, TASK)}


def test_the_embedded_world_can_be_streamed():
    first, second = open_source("facts", TASK, limit=2, streaming=True)
    assert first.prompt.startswith("Question: ")
    assert {first.id, second.id} < {e.id for e in load_examples("facts", TASK)}


class EndlessHubStub:
    """A hub data set that never ends, unless the connection breaks, and counts what is asked of it."""

    column_names = ("prompt", "completion", "image")

    def __init__(self, breaks_at: int | None = None):
        self.asked, self.breaks_at = 0, breaks_at

    def select_columns(self, columns: list[str]) -> "EndlessHubStub":
        assert columns == ["prompt", "completion"]
        return self

    def __iter__(self) -> Iterator[dict[str, str]]:
        while True:
            if self.asked == self.breaks_at:
                raise ConnectionError("connection reset\nby peer")
            self.asked += 1
            yield {"prompt": f"p{self.asked}", "completion": "c"}


def test_a_stream_from_the_hub_is_read_no_further_than_asked(monkeypatch: pytest.MonkeyPatch):
    hub = EndlessHubStub()
    calls: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: calls.append((args, kwargs)) or hub)
    source = open_source("someone/data", TASK, limit=5, streaming=True)
    assert (calls, hub.asked) == ([(("someone/data", None), {"streaming": True})], 0)
    assert [e.prompt for e in source] == ["p1", "p2", "p3", "p4", "p5"]
    assert hub.asked == 5


def test_a_stream_that_breaks_ends_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: EndlessHubStub(breaks_at=3))
    message = refusal(lambda: list(open_source("someone/data", TASK, streaming=True)))
    assert "'someone/data'" in message
    assert "(connection reset)" in message


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("a.jsonl", "\n \n", "has no rows."),
        ("a.jsonl", '{"prompt": "a"}\n', "has no column 'completion'"),
        (
            "a.jsonl",
            '{"text": "a"}\n' * 1001,
            "has no column 'prompt', which task 'prompt-completion' needs; it has: tex",
        ),
        ("a.jsonl", "no JSON\n", "no line of it is a JSON object (the first is not JSON: Expecting value"),
        ("a.parquet", "no parquet", "as parquet: Parquet"),
    ],
)
def test_an_unusable_stream_is_refused_in_one_line_with_its_path(tmp_path: Path, name: str, content: str, phrase: str):
    path = write(tmp_path / name, content)
    message = refusal(lambda: list(open_source(path, TASK, streaming=True)))
    assert f"'{path}'" in message
    assert phrase in message


# Formats


def test_json_lines_under_the_name_json_and_a_json_array_give_the_same(tmp_path: Path):
    lines = write(tmp_path / "a.json", "\n".join(json.dumps(row) for row in ROWS))
    array = write(tmp_path / "b.json", json.dumps(ROWS, indent=1))
    assert load_examples(lines, TASK) == load_examples(array, TASK)
    mixed = write(tmp_path / "c.json", json.dumps([*ROWS, {"prompt": 1, "completion": ["x"]}]))
    examples = load_examples(mixed, TASK)
    assert [e.problem for e in examples if e.problem] == [("prompt is not text", "it is int")]
    assert len(examples) == 6


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path):
    plain = write(tmp_path / "a.jsonl", ROWS)
    other = tmp_path / "b.jsonl"
    other.write_bytes(b"\xef\xbb\xbf" + Path(plain).read_bytes().replace(b"\n", b"\r\n"))
    assert load_examples(plain, TASK) == load_examples(str(other), TASK)


def test_numbers_and_dates_in_a_csv_stay_text(tmp_path: Path):
    path = write(tmp_path / "a.csv", "id,prompt,completion\nx,007,1e3\n,8,2024-01-01\n")
    assert {(e.prompt, e.response) for e in load_examples(path, TASK)} == {("007", "1e3"), ("8", "2024-01-01")}
