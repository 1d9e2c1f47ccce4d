"""What stands in a shard's record and is not of that shard counts as damage, and the shard is made again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.schema import Reject
from data.shard_records import ShardEntry
from tests.support.written import SHARDS, all_files, go_on, unfinished

STRANGE = [b"[" * 100_000, b"[]", b"5", b'{"record": 1, "rejects": 2}', b'{"record": {}, "rejects": [{"id": 5}]}']


@pytest.mark.parametrize("content", STRANGE)
@pytest.mark.parametrize("file", ["_job/shard-00001.json", "_job/job.json"])
def test_a_record_that_holds_anything_is_a_damaged_one(
    file: str, content: bytes, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "set"
    unfinished(out, [0, 1]).end()
    record = json.loads((out / "_job/shard-00001.json").read_bytes())
    if file == "_job/job.json" and content.startswith(b"{"):
        content = b""  # any object says whose directory it is
    (out / file).write_bytes(content)
    assert go_on(out) == ([1, 2] if "shard" in file else [2])
    assert all_files(out) == expected
    # A record's own values, one of which is of another kind.
    for name, value in (("file", 5), ("bytes", "9"), ("sha256", None), ("rows", -1), ("tokens", [])):
        with pytest.raises(ValueError, match=rf"^record\.{name} is "):
            ShardEntry.from_json(json.dumps({**record, "record": {**record["record"], name: value}}).encode())


def renamed(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda entry: entry["record"].update(file=name)


def more_rows(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda entry: entry["record"].update({name: entry["record"][name] + 1 for name in names})


def reject_with(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda entry: entry["rejects"][0].update(values)


ODD = {
    "a name with NUL": renamed("a\0b"),
    "a name too long": renamed("a" * 5000),
    "no name": renamed(""),
    "a path": renamed("../set/shard-00000.parquet"),
    "another shard": renamed("shard-00001.parquet"),
    "rows": more_rows("rows"),
    "rows read": more_rows("rows_read"),
    "rows that the shard has not": more_rows("rows", "rows_read"),
    "rejects that are not there": more_rows("rows_rejected", "rows_read"),
    "no rejects": lambda entry: entry["rejects"].clear(),
    "strategy": reject_with(strategy=5),
    "response": reject_with(response=["x"]),
    "split": reject_with(split=1.5),
    "query": reject_with(query={}),
    "a text as id": reject_with(prompt_ids=["x"]),
    "an id below 0": reject_with(response_ids=[-1]),
    "an id of 64 bits": reject_with(response_ids=[1 << 31]),
    "no messages": reject_with(messages=["hello"]),
    "a message without a role": reject_with(messages=[{"content": "hello"}]),
    "another key": reject_with(surprise=1),
}


@pytest.mark.parametrize("edit", ODD.values(), ids=ODD.keys())
def test_a_record_that_is_not_of_its_shard_is_a_damaged_one(
    edit: Callable[[dict[str, Any]], object],
    tmp_path: Path,
    expected: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "set"
    unfinished(out, [0, 1]).end()
    entry = json.loads((out / "_job/shard-00000.json").read_text())
    edit(entry)
    (out / "_job/shard-00000.json").write_text(json.dumps(entry))
    assert go_on(out) == [0, 2]
    assert "damaged, and made again: shard-00000.parquet" in caplog.text
    assert all_files(out) == expected


def test_a_record_in_the_place_of_another_is_a_damaged_one(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """The record is sound by size and checksum of the shard that it names, which the set would hold twice."""
    out = tmp_path / "set"
    unfinished(out, [0, 1]).end()
    (out / "_job/shard-00001.json").write_bytes((out / "_job/shard-00000.json").read_bytes())
    assert go_on(out) == [1, 2]
    assert all_files(out) == expected


def test_the_record_of_a_reject_that_holds_a_whole_row_is_read_back(tmp_path: Path) -> None:
    messages: list[Any] = [{"role": "user", "content": "p"}, {"role": "assistant", "content": None}]
    whole = Reject("r", "too few", "", "p", "an", "r", "test", [0, (1 << 31) - 1], [2], messages, "asked")
    driver = unfinished(tmp_path, [])
    driver.write_shard(0, SHARDS[1], [whole], seconds={}, layout="packed")
    entry = driver.entry(0)
    assert entry is not None
    assert entry.rejects == [whole]
