"""data/schema.py, storage.py, manifest.py and shards.py: what is written is read, whole, or refused."""

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from data.command.errors import UserError
from data.manifest import MISSING, environment, first_difference
from data.schema import SCHEMA_VERSION, Candidate, Group, Reject, example_id, group_schema
from data.shards import NegativeSet, NegativeSetWriter, shard_name
from data.storage import TEMPORARY_PREFIX, Folder, sha256
from tests.support.schema_2 import write_as_schema_2

SIGNALS = ["embedding", "rouge"]
JOB: dict[str, Any] = {
    "model": {"name": "ref", "weights_sha256": "a" * 64},
    "tokenizer": {"sha256": "b" * 64},
    "seed": 1,
    "strategies": ("an", "bn"),
}


def candidate(strategy: str, ids: list[int], **values: Any) -> Candidate:
    return Candidate(strategy, ids, f"text {ids}", similarity={"embedding": 0.5, "rouge": -0.25}, **values)


def group(number: int) -> Group:
    """A group with sampled and unsampled negatives; the floats are exact in float32."""
    negatives = [
        candidate("an", [number, 2], finish_reason="length", sampler_logp=-1.5, reference_logp=-1.25, seed=2**40),
        candidate("bn", [3], source_id="f" * 32, reference_logp=-8.0),
    ]
    prompt, response = f"prompt {number} é", "response\n"
    ids = [number, 5, 6]
    split = "test" if number == 3 else "train"
    return Group(
        *(example_id(prompt, response), prompt, response, ids, [7, 0], split, -2.5, [0.5, -0.5], negatives),
        query=f"asked {number}",
    )


SHARDS = [[group(1), group(2)], [group(3)], []]
REJECTS = [[Reject("r1", "empty response", "", "p")], [], [Reject("r2", "duplicate", "d", "q")]]


def write_part(writer: NegativeSetWriter, index: int) -> None:
    writer.write_shard(index, SHARDS[index], REJECTS[index], seconds={"sample": 1.23456}, layout="packed")


def write_set(path: str) -> NegativeSetWriter:
    writer = NegativeSetWriter(path, JOB, SIGNALS)
    assert writer.begin()
    for index in (2, 0, 1):
        write_part(writer, index)
    writer.finish(len(SHARDS))
    return writer


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    write_set(str(tmp_path / "set"))
    return tmp_path / "set"


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def all_files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_groups_and_rejects_come_back_as_they_were_written(finished: Path):
    negative_set = NegativeSet(str(finished))
    assert list(negative_set.groups()) == [group(1), group(2), group(3)]
    assert negative_set.rejects() == [Reject("r1", "empty response", "", "p"), Reject("r2", "duplicate", "d", "q")]
    assert negative_set.signals == SIGNALS
    assert len(negative_set) == 3


def test_a_finished_set_holds_the_shards_rejects_and_manifest_only(finished: Path):
    assert set(all_files(finished)) == {"manifest.json", "rejects.parquet", *map(shard_name, range(3))}


def test_what_a_killed_worker_was_writing_is_gone_at_the_end(tmp_path: Path):
    writer = NegativeSetWriter(str(tmp_path / "set"), JOB, SIGNALS)
    writer.begin()
    for index in range(len(SHARDS)):
        write_part(writer, index)
    (tmp_path / "set" / f"{TEMPORARY_PREFIX}half").write_bytes(b"half a shard")
    writer.finish(len(SHARDS))
    assert set(all_files(tmp_path / "set")) == {"manifest.json", "rejects.parquet", *map(shard_name, range(3))}


def test_tables_have_the_documented_schema_and_the_chosen_columns(finished: Path):
    negative_set = NegativeSet(str(finished))
    first, second, _ = negative_set.tables()
    assert first.schema.equals(group_schema(SIGNALS))
    assert first.column_names[:4] == ["id", "prompt", "response", "query"]
    splits = [table["split"].to_pylist() for table in negative_set.tables(["split"])]
    assert splits == [["train", "train"], ["test"], []]
    assert second.select(["response_ids", "id"]).to_pylist() == [{"response_ids": [7, 0], "id": group(3).id}]


def test_parts_of_a_shard_are_read_by_their_paths_and_its_checksum_verified_once(finished: Path):
    negative_set = NegativeSet(str(finished))
    paths = ["id", "negatives.list.element.strategy"]
    table = negative_set.shard_table(0, paths)
    assert table.column_names == ["id", "negatives"]
    assert table["negatives"][0].as_py() == [{"strategy": "an"}, {"strategy": "bn"}]
    content = (finished / shard_name(0)).read_bytes()
    (finished / shard_name(0)).write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    with pytest.raises(UserError, match=r"shard-00000.parquet of negative set .* is damaged"):
        NegativeSet(str(finished)).shard_table(0, paths)
    (finished / shard_name(0)).write_bytes(content)
    assert negative_set.shard_table(0, ["id"]).equals(table.select(["id"]))


def test_the_manifest_counts_rows_tokens_bytes_and_seconds(finished: Path):
    manifest = NegativeSet(str(finished)).manifest
    assert manifest.counts == {
        "rows_read": 5,
        "rows_written": 3,
        "rows_rejected": 2,
        "rows_truncated": 0,
        "rejected_by_reason": {"empty response": 1, "duplicate": 1},
    }
    assert all(shard.rows_read == shard.rows + shard.rows_rejected for shard in manifest.shards)
    first = manifest.shards[0]
    assert (first.file, first.rows_read, first.rows, first.rows_rejected) == ("shard-00000.parquet", 3, 2, 1)
    assert first.bytes == (finished / first.file).stat().st_size
    assert first.tokens == {"prompt": 6, "response": 4, "negatives": 6, "an": 4, "bn": 2}
    assert (first.seconds, first.layout) == ({"sample": 1.235}, "packed")
    assert manifest.job == json.loads(json.dumps(JOB))


def test_the_environment_names_package_versions_and_the_commit_of_this_checkout():
    found = environment()
    assert found["packages"]["pyarrow"] == pa.__version__
    assert len(found["git_commit"]) == 40


def test_plain_pyarrow_and_pandas_read_a_shard_without_our_code(finished: Path):
    path = finished / "shard-00000.parquet"
    row = pq.read_table(path).to_pylist()[1]
    assert row["prompt_ids"] == [2, 5, 6]
    assert row["negatives"][1]["similarity"] == {"embedding": 0.5, "rouge": -0.25}
    frame = pandas.read_parquet(path)
    assert frame["prompt"].tolist() == ["prompt 1 é", "prompt 2 é"]
    assert [c["sampler_logp"] for c in frame["negatives"][0]] == [-1.5, None]


def test_datasets_reads_the_shards_without_our_code(finished: Path, tmp_path: Path):
    loaded = load_dataset(
        "parquet", data_files=str(finished / "shard-*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["id"][:] == [group(n).id for n in (1, 2, 3)]
    assert loaded[0]["negatives"][0]["ids"] == [1, 2]
    assert loaded[0]["reference_logp"] == -2.5


def test_an_object_store_url_works_as_output(finished: Path):
    url = "memory://test-shards/set"
    write_set(url)
    negative_set = NegativeSet(url)
    assert list(negative_set.groups()) == [group(1), group(2), group(3)]
    assert negative_set.folder.names() == {p.name for p in finished.iterdir()}
    assert fsspec.filesystem("memory").cat_file("/test-shards/set/shard-00000.parquet") == (
        (finished / "shard-00000.parquet").read_bytes()
    )
    assert not NegativeSetWriter(url, JOB, SIGNALS).begin()


def test_an_unknown_kind_of_url_is_refused():
    assert "cannot open 'bogus://x'" in refusal(lambda: Folder("bogus://x"))


def test_an_interrupted_job_goes_on_and_gives_the_same_bytes(finished: Path, tmp_path: Path):
    path = tmp_path / "resumed"
    first = NegativeSetWriter(str(path), JOB, SIGNALS)
    assert first.begin()
    write_part(first, 0)
    (path / shard_name(1)).write_bytes(b"written, but the crash came before its record")
    (path / ".tmp-x").write_bytes(b"half")
    (path / "_job" / ".tmp-y").write_bytes(b"half")
    before = (path / shard_name(0)).stat().st_mtime_ns

    second = NegativeSetWriter(str(path), JOB, SIGNALS)
    assert second.begin()
    assert second.finished() == {0}
    assert "2 of 3 shards are not finished" in refusal(lambda: second.finish(3))
    for index in (1, 2):
        write_part(second, index)
    second.finish(3)
    assert (path / shard_name(0)).stat().st_mtime_ns == before
    assert all_files(path) == all_files(finished)


def test_finish_refuses_while_shards_are_missing_and_names_the_first(tmp_path: Path):
    writer = NegativeSetWriter(str(tmp_path), JOB, SIGNALS)
    writer.begin()
    write_part(writer, 0)
    assert "2 of 3 shards are not finished (first: shard-00001.parquet)" in refusal(lambda: writer.finish(3))
    assert not (tmp_path / "manifest.json").exists()


def test_a_crash_between_rejects_and_manifest_is_finished_by_the_next_run(finished: Path, tmp_path: Path):
    path = tmp_path / "set2"
    writer = NegativeSetWriter(str(path), JOB, SIGNALS)
    writer.begin()
    for index in range(3):
        write_part(writer, index)
    (path / "rejects.parquet").write_bytes(b"from the crashed finish")
    again = NegativeSetWriter(str(path), JOB, SIGNALS)
    assert again.begin()
    again.finish(3)
    assert all_files(path) == all_files(finished)


def test_a_job_that_failed_before_its_first_shard_gives_the_directory_up(tmp_path: Path):
    writer = NegativeSetWriter(str(tmp_path), JOB, SIGNALS)
    writer.begin()
    writer.release()
    assert all_files(tmp_path) == {}
    corrected = NegativeSetWriter(str(tmp_path), {**JOB, "seed": 2}, SIGNALS)
    assert corrected.begin()
    write_part(corrected, 0)
    before = all_files(tmp_path)
    corrected.release()
    assert all_files(tmp_path) == before


def test_a_finished_set_has_nothing_left_to_do_and_loses_a_leftover_job_folder(finished: Path):
    before = all_files(finished)
    (finished / "_job").mkdir()
    (finished / "_job" / "job.json").write_text("{}")
    assert not NegativeSetWriter(str(finished), JOB, SIGNALS).begin()
    assert all_files(finished) == before


@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_another_job_in_the_same_directory_is_refused_with_key_and_both_values(tmp_path: Path, state: str):
    if state == "finished":
        write_set(str(tmp_path))
    else:
        NegativeSetWriter(str(tmp_path), JOB, SIGNALS).begin()
    before = all_files(tmp_path)
    other = copy.deepcopy(JOB)
    other["model"]["weights_sha256"] = "c"
    message = refusal(NegativeSetWriter(str(tmp_path), other, SIGNALS).begin)
    assert f"its model.weights_sha256 is '{'a' * 64}', this job's is 'c'" in message
    assert all_files(tmp_path) == before


def test_the_same_job_with_its_model_under_another_name_goes_on(tmp_path: Path):
    NegativeSetWriter(str(tmp_path), JOB, SIGNALS).begin()
    other = copy.deepcopy(JOB)
    other["model"]["name"] = "/another/path/to/ref"
    assert NegativeSetWriter(str(tmp_path), other, SIGNALS, undecided=["model.name"]).begin()


@pytest.mark.parametrize("part", ["model", "data"])
def test_only_what_does_not_decide_the_content_may_differ(tmp_path: Path, part: str):
    def writer() -> NegativeSetWriter:
        return NegativeSetWriter(str(tmp_path), job, SIGNALS, undecided=[f"{part}.name"])

    job = {**JOB, part: {**JOB.get(part, {}), "name": "one", "other": {"name": "one"}}}
    writer().begin()
    job[part] = {**job[part], "name": "two"}
    assert writer().begin()
    job[part] = {**job[part], "other": {"name": "two"}}
    message = refusal(writer().begin)
    assert f"its {part}.other.name is 'one', this job's is 'two'" in message


@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_the_same_job_with_other_signals_is_refused(tmp_path: Path, state: str):
    if state == "finished":
        write_set(str(tmp_path))
    else:
        NegativeSetWriter(str(tmp_path), JOB, SIGNALS).begin()
    message = refusal(NegativeSetWriter(str(tmp_path), JOB, ["embedding"]).begin)
    assert "its ranking signals is ['embedding', 'rouge'], this job's is ['embedding']" in message


@pytest.mark.parametrize("similarity", [{}, {"embedding": 0.5}, {"embedding": 0.5, "rouge": 0.5, "bleu": 0.5}])
def test_a_candidate_with_other_signals_than_the_sets_is_a_bug(tmp_path: Path, similarity: dict[str, float]):
    writer = NegativeSetWriter(str(tmp_path), JOB, SIGNALS)
    writer.begin()
    before, wrong = all_files(tmp_path), group(1)
    wrong.negatives[1].similarity = similarity
    with pytest.raises(ValueError, match=f"negative 1 of group {wrong.id} has the signals") as caught:
        writer.write_shard(0, [group(2), wrong], [], seconds={}, layout="packed")
    assert not isinstance(caught.value, UserError)
    assert all_files(tmp_path) == before


def test_a_finished_shard_written_again_stays_as_it_is_and_gives_its_record(tmp_path: Path):
    writer = NegativeSetWriter(str(tmp_path), JOB, SIGNALS)
    writer.begin()
    first = writer.write_shard(0, SHARDS[0], REJECTS[0], seconds={"sample": 1.0}, layout="packed")
    before = all_files(tmp_path)
    again = writer.write_shard(0, SHARDS[1], REJECTS[1], seconds={"sample": 2.0}, layout="padded")
    assert again == first
    assert all_files(tmp_path) == before


def test_a_directory_with_foreign_files_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    message = refusal(NegativeSetWriter(str(tmp_path), JOB, SIGNALS).begin)
    assert "already holds other files (thesis.txt ...)" in message
    assert all_files(tmp_path) == {"thesis.txt": b"mine"}


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("")
    assert f"'{path}' is a file, not a directory" in refusal(lambda: NegativeSet(str(path)))
    assert f"'{path}' is a file, not a directory" in refusal(lambda: NegativeSetWriter(str(path), JOB, SIGNALS))
    assert "is a file, not a directory" in refusal(lambda: NegativeSet(str(path / "below")))


def test_first_difference_walks_nested_settings():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": [1]}}, {"a": {"b": [2]}}) == ("a.b", [1], [2])
    assert first_difference({}, {"new": 3}) == ("new", MISSING, 3)
    assert first_difference({"a": {"b": 1, "name": 2}}, {"a": {"b": 1}}, ignore=("a.name",)) is None


def test_first_difference_tells_null_from_missing_and_ignores_whole_paths_only():
    assert first_difference({"a": {"b": None}}, {"a": {}}) == ("a.b", None, MISSING)
    assert f"{MISSING!r}" == "(missing)"
    assert first_difference({"x": {"name": 1}}, {"x": {"name": 2}}, ignore=("name", "a.name")) == ("x.name", 1, 2)


def test_an_unfinished_set_is_refused_saying_how_to_go_on(tmp_path: Path):
    NegativeSetWriter(str(tmp_path), JOB, SIGNALS).begin()
    message = refusal(lambda: NegativeSet(str(tmp_path)))
    assert "is unfinished: run the same `python -m negatives_gen` command again" in message


def test_no_set_at_all_is_refused(tmp_path: Path):
    assert "does not exist, so it is no negative set" in refusal(lambda: NegativeSet(str(tmp_path / "absent")))
    (tmp_path / "x").write_text("")
    assert "has no manifest.json, so it is no negative set" in refusal(lambda: NegativeSet(str(tmp_path)))


def test_another_schema_version_is_refused_with_both_versions(finished: Path):
    manifest = json.loads((finished / "manifest.json").read_text())
    (finished / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    message = refusal(lambda: NegativeSet(str(finished)))
    assert f"has schema version 99, this program reads version {SCHEMA_VERSION}" in message


def test_a_set_of_schema_2_is_read_without_what_it_lacks(finished: Path):
    write_as_schema_2(finished)
    assert "query" not in pq.read_table(finished / shard_name(0)).column_names
    negatives = NegativeSet(str(finished))
    assert list(negatives.groups()) == [dataclasses.replace(group(n), query="") for n in (1, 2, 3)]
    assert negatives.rejects() == [*REJECTS[0], *REJECTS[2]]
    assert negatives.manifest.shards[0].layout == "packed"
    assert negatives.shard_table(0, ["id"]).column_names == ["id"]


def test_where_more_than_training_is_asked_a_set_of_schema_2_is_refused(finished: Path):
    write_as_schema_2(finished)
    said = "has schema version 2: it lacks what a person asked, so it can be trained on and looked at, but not extended"
    assert said in refusal(lambda: NegativeSet(str(finished), current=True))
    assert said in refusal(NegativeSetWriter(str(finished), JOB, SIGNALS).begin)


def test_an_unfinished_set_of_schema_2_is_not_gone_on_with(tmp_path: Path):
    writer = NegativeSetWriter(str(tmp_path), JOB, SIGNALS)
    writer.begin()
    claim = json.loads((tmp_path / "_job/job.json").read_text())
    del claim["schema_version"]
    (tmp_path / "_job/job.json").write_text(json.dumps(claim))
    said = "already holds another job: its schema_version is (missing), this job's is 3."
    assert said in refusal(NegativeSetWriter(str(tmp_path), JOB, SIGNALS).begin)


@pytest.mark.parametrize("read", ["groups", "shard_table", "rejects"])
def test_a_file_with_other_columns_than_the_schemas_is_refused(finished: Path, read: str):
    name = "rejects.parquet" if read == "rejects" else shard_name(0)
    pq.write_table(pq.read_table(finished / name).drop_columns(["response"]), finished / name)
    manifest = json.loads((finished / "manifest.json").read_text())
    record = manifest["rejects"] if read == "rejects" else manifest["shards"][0]
    record["sha256"] = sha256((finished / name).read_bytes())
    (finished / "manifest.json").write_text(json.dumps(manifest))
    negatives = NegativeSet(str(finished))
    calls = {
        "groups": lambda: list(negatives.groups()),
        "shard_table": lambda: negatives.shard_table(0, ["id"]),
        "rejects": negatives.rejects,
    }
    assert refusal(calls[read]).endswith(
        "has not the columns of schema version 3: column response is missing, the schema says string. Generate the set "
        "again."
    )


@pytest.mark.parametrize("content", ["{", '{"schema_version": 2}', '{"schema_version": 2, "shards": [], "x": 1}'])
def test_a_damaged_manifest_is_refused(finished: Path, content: str):
    (finished / "manifest.json").write_text(content)
    assert "the manifest of" in refusal(lambda: NegativeSet(str(finished)))
    assert "is damaged" in refusal(lambda: NegativeSet(str(finished)))


def test_a_shard_with_one_flipped_byte_is_refused_by_name(finished: Path):
    path = finished / "shard-00001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    negative_set = NegativeSet(str(finished))
    for read in (lambda: negative_set.shard_table(1, ["id"]), lambda: list(negative_set.groups())):
        assert "shard-00001.parquet of negative set" in refusal(read)
        assert "is damaged: its SHA-256 is" in refusal(read)


def test_a_missing_shard_is_refused_by_name(finished: Path):
    (finished / "shard-00002.parquet").unlink()
    assert "lacks shard-00002.parquet" in refusal(lambda: NegativeSet(str(finished)))


def test_a_shard_that_goes_missing_after_opening_is_refused_by_name(finished: Path):
    negative_set = NegativeSet(str(finished))
    (finished / "shard-00001.parquet").unlink()
    for read in (lambda: negative_set.shard_table(1, ["id"]), lambda: list(negative_set.groups())):
        assert "lacks shard-00001.parquet" in refusal(read)


def test_damaged_or_missing_rejects_are_refused_by_name(finished: Path):
    negative_set = NegativeSet(str(finished))
    path = finished / "rejects.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    assert "rejects.parquet of negative set" in refusal(negative_set.rejects)
    assert "is damaged: its SHA-256 is" in refusal(negative_set.rejects)
    path.unlink()
    assert "lacks rejects.parquet" in refusal(negative_set.rejects)


def test_another_reference_model_or_tokenizer_is_refused_with_both_hashes(finished: Path):
    negative_set = NegativeSet(str(finished))
    negative_set.check_reference("a" * 64, "mine")
    negative_set.check_tokenizer("b" * 64, "mine")
    weights = refusal(lambda: negative_set.check_reference("c" * 64, "mine"))
    assert (
        "reference model 'ref' (weights aaaaaaaaaaaaaaaa), but --model 'mine' has weights cccccccccccccccc" in weights
    )
    tokenizer = refusal(lambda: negative_set.check_tokenizer("c" * 64, "mine"))
    assert "made with tokenizer bbbbbbbbbbbbbbbb, but 'mine' has tokenizer cccccccccccccccc" in tokenizer


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


def test_an_id_depends_on_both_texts_and_on_where_one_ends():
    assert example_id("ab", "c") == example_id("ab", "c")
    assert len({example_id("ab", "c"), example_id("a", "bc"), example_id("abc", ""), example_id("c", "ab")}) == 4
    assert len(example_id("\ud800", "")) == 32


def test_the_ids_of_missing_or_other_values_differ_from_those_of_their_texts():
    values = [None, "None", 3, "3", 3.0, True, "True", [1], "[1]"]
    ids = {example_id(*pair) for value in values for pair in ((value, "x"), ("x", value), (value, value))}
    assert len(ids) == 3 * len(values)
    assert example_id(None, "x") == example_id(None, "x")
