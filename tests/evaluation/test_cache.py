"""The evaluation's store: what was made once is not made again, and what is damaged is not used."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.command.errors import UserError
from data.storage import Folder, sha256
from evaluation.answers.cache import Store, hash_of

KEY = {"model": "abc", "limits": [1, 2], "nothing": None}


def table(*values: float | None) -> pa.Table:
    schema = pa.schema([("value", pa.float64()), ("ids", pa.list_(pa.int32()))], metadata={b"seconds": b"2.5"})
    return pa.Table.from_pylist([{"value": value, "ids": [1, 2]} for value in values], schema=schema)


def has(store: Store, kind: str, key: dict[str, Any]) -> bool:
    return any(name.startswith(f"{hash_of(key)}.") for name in Folder(f"{store.path}/{kind}").names())


def never() -> pa.Table:
    raise AssertionError("made again")


def test_the_store_makes_a_table_once_and_then_reads_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    assert not has(store, "numbers", KEY)
    made = store.get_or_make("numbers", KEY, lambda: table(0.1, None))
    assert has(store, "numbers", KEY)
    kept = Store(str(tmp_path / "store")).get_or_make("numbers", KEY, never)
    assert kept.equals(made, check_metadata=True)
    assert kept.to_pylist() == [{"value": 0.1, "ids": [1, 2]}, {"value": None, "ids": [1, 2]}]
    assert kept.schema.metadata[b"seconds"] == b"2.5"


def test_the_key_alone_decides_not_its_order(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.get_or_make("numbers", KEY, lambda: table(1.0))
    same = {"nothing": None, "limits": (1, 2), "model": "abc"}
    assert store.get_or_make("numbers", same, never)["value"].to_pylist() == [1.0]
    for other in ({**KEY, "model": "abd"}, {**KEY, "limits": [2, 1]}, {**KEY, "more": 0}, {"model": "abc"}):
        assert hash_of(other) != hash_of(KEY)
        assert not has(store, "numbers", other)
    assert not has(store, "letters", KEY)


def test_a_computation_that_fails_leaves_no_entry_in_the_cache(tmp_path: Path) -> None:
    def fail() -> pa.Table:
        raise UserError("no model")

    with pytest.raises(UserError, match="no model"):
        Store(str(tmp_path / "store")).get_or_make("numbers", KEY, fail)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("content", "why"), [(b"no table", "cannot be read ("), (b"", "cannot be read ("), (None, "holds something else")]
)
def test_a_file_that_others_wrote_under_a_fitting_name_is_one_line(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    if content is None:
        buffer = io.BytesIO()
        pq.write_table(table(1.0).replace_schema_metadata({b"evaluation": b"{"}), buffer)
        content = buffer.getvalue()
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / f"{hash_of(KEY)}.{sha256(content)[:16]}.parquet").write_bytes(content)
    with pytest.raises(UserError) as caught:
        Store(str(tmp_path)).get_or_make("numbers", KEY, never)
    assert why in str(caught.value)
    assert str(caught.value).endswith("Delete it; it is made again.")


def test_an_interrupted_write_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / ".tmp-abc").write_bytes(b"PAR1")
    store = Store(str(tmp_path))
    assert not has(store, "numbers", KEY)
    assert store.get_or_make("numbers", KEY, lambda: table(3.0))["value"].to_pylist() == [3.0]


def test_damaged_entries_of_the_cache_are_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.get_or_make("numbers", KEY, lambda: table(0.25, 1.5, -7.0))
    (file,) = (tmp_path / "numbers").iterdir()
    whole = file.read_bytes()
    for place in range(0, len(whole), 10):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x21]) + whole[place + 1 :]):
            file.write_bytes(damaged)
            with pytest.raises(UserError, match="is damaged") as error:
                store.get_or_make("numbers", KEY, never)
            assert str(file) in str(error.value)


def test_a_table_under_anothers_name_is_refused(tmp_path: Path) -> None:
    store, other = Store(str(tmp_path)), {"model": "other"}
    store.get_or_make("numbers", KEY, lambda: table(1.0))
    (file,) = (tmp_path / "numbers").iterdir()
    file.rename(file.with_name(file.name.replace(hash_of(KEY), hash_of(other))))
    with pytest.raises(UserError, match="something else than its name says"):
        store.get_or_make("numbers", other, never)


def test_two_runs_at_the_same_time_may_both_write(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def other_first() -> pa.Table:
        store.get_or_make("numbers", KEY, lambda: table(1.0))
        return table(2.0)

    store.get_or_make("numbers", KEY, other_first)
    assert len(list((tmp_path / "numbers").iterdir())) == 2
    assert store.get_or_make("numbers", KEY, never) == store.get_or_make("numbers", KEY, never)


def test_a_store_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(UserError, match="store"):
        Store(str(tmp_path / "store")).get_or_make("numbers", KEY, lambda: table(1.0))
