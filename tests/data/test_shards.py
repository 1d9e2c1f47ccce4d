"""data/shards.py: what was written is read, whole, or refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import fsspec
import pandas
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from data.command.errors import UserError
from data.manifest import shard_name
from data.schema import SCHEMA_VERSION, Reject, group_schema, groups_to_table
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from data.soundness import length_problems
from data.storage import sha256
from tests.support.older_schemas import write_as_schema
from tests.support.written import JOB, REJECTS, SIGNALS, all_files, group, refusal, write_part, write_set


def test_groups_and_rejects_come_back_as_they_were_written(finished: Path):
    negative_set = NegativeSet(str(finished))
    assert list(negative_set.groups()) == [group(1), group(2), group(3)]
    assert negative_set.rejects() == [Reject("r1", "empty response", "", "p"), Reject("r2", "duplicate", "d", "q")]
    assert negative_set.signals == SIGNALS
    assert len(negative_set) == 3


def test_a_finished_set_holds_the_shards_rejects_and_manifest_only(finished: Path):
    assert set(all_files(finished)) == {"manifest.json", "rejects.parquet", *map(shard_name, range(3))}


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


def test_sequences_that_a_model_does_not_take_are_refused_when_they_are_read(finished: Path):
    """Group 1: 3 + 2 tokens with its truth, as many with its longest negative."""
    negative_set = NegativeSet(str(finished))
    negative_set.give_to(None, 5)
    assert len(list(negative_set.groups())) == 3
    negative_set = NegativeSet(str(finished))
    negative_set.give_to(None, 4)
    with pytest.raises(UserError) as caught:
        negative_set.shard(0)
    assert str(caught.value) == (
        f"shard-00000.parquet of negative set '{finished}' cannot be used: a sequence of group {group(1).id} has 5 "
        "tokens, the model's context 4. Restore it, or generate the set again."
    )


def test_negatives_count_unless_the_model_is_given_none():
    longer = group(1)
    longer.negatives[1].ids = [3] * 7
    table = groups_to_table([group(2), longer], SIGNALS)
    assert length_problems(table, 9) == [f"a sequence of group {longer.id} has 10 tokens, the model's context 9"]
    for context, truths_only in ((10, False), (5, True), (None, False)):
        assert length_problems(table, context, truths_only=truths_only) == []
    assert len(length_problems(table, 4, truths_only=True)) == 2


def test_a_set_that_was_made_for_a_longer_context_is_looked_through_at_once(tmp_path: Path):
    for context in (4, 5, 6):
        path = tmp_path / str(context)
        writer = NegativeSetWriter(str(path), {**JOB, "data": {"context": context}}, SIGNALS)
        writer.begin()
        for index in range(3):
            write_part(writer, index)
        writer.finish(3)
    NegativeSet(str(tmp_path / "4")).give_to(None, 4)  # it promises to fit; read it when it is needed
    NegativeSet(str(tmp_path / "6")).give_to(None, 5)
    with pytest.raises(UserError, match="has 5 tokens, the model's context 4"):
        NegativeSet(str(tmp_path / "5")).give_to(None, 4)


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


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("")
    assert f"'{path}' is a file, not a directory" in refusal(lambda: NegativeSet(str(path)))
    assert f"'{path}' is a file, not a directory" in refusal(lambda: NegativeSetWriter(str(path), JOB, SIGNALS))
    assert "is a file, not a directory" in refusal(lambda: NegativeSet(str(path / "below")))


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


@pytest.mark.parametrize(("version", "lacking"), [(2, {"query": "", "in_support": None}), (3, {"in_support": None})])
def test_a_set_of_an_older_schema_is_read_without_what_it_lacks(finished: Path, version: int, lacking: dict[str, Any]):
    write_as_schema(version, finished)
    assert not lacking.keys() & set(pq.read_table(finished / shard_name(0)).column_names)
    negatives = NegativeSet(str(finished))
    assert list(negatives.groups()) == [dataclasses.replace(group(n), **lacking) for n in (1, 2, 3)]
    assert [shard.occupancy for shard in negatives.manifest.shards] == [None] * 3
    assert negatives.rejects() == [*REJECTS[0], *REJECTS[2]]
    assert negatives.manifest.shards[0].layout == "packed"
    assert negatives.shard_table(0, ["id"]).column_names == ["id"]


def test_where_more_than_training_is_asked_a_set_of_schema_2_is_refused(finished: Path):
    write_as_schema(2, finished)
    said = "has schema version 2: it lacks what a person asked, so it can be trained on and looked at, but not extended"
    assert said in refusal(lambda: NegativeSet(str(finished), current=True))
    assert said in refusal(NegativeSetWriter(str(finished), JOB, SIGNALS).begin)


def test_a_finished_set_of_schema_3_is_met_as_finished_and_not_mixed_with_new_shards(finished: Path):
    write_as_schema(3, finished)
    manifest = (finished / "manifest.json").read_bytes()
    assert NegativeSet(str(finished), current=True).manifest.to_json() == manifest
    assert not NegativeSetWriter(str(finished), JOB, SIGNALS).begin()
    (finished / shard_name(1)).unlink()
    said = f"'{finished}' has schema version 3 and is damaged (shard-00001.parquet): this program writes version 4."
    assert said in refusal(NegativeSetWriter(str(finished), JOB, SIGNALS).begin)
    assert (finished / "manifest.json").read_bytes() == manifest


def test_occupancy_of_the_engine_is_kept_per_shard(tmp_path: Path):
    writer = NegativeSetWriter(str(tmp_path / "set"), JOB, SIGNALS)
    writer.begin()
    writer.write_shard(0, [group(1)], [], seconds={}, layout="packed", occupancy=2 / 3)
    writer.write_shard(1, [group(2)], [], seconds={}, layout="packed")
    writer.finish(2)
    shards = NegativeSet(str(tmp_path / "set")).manifest.shards
    assert [shard.occupancy for shard in shards] == [0.6667, None]


def test_occupancy_of_the_set_is_that_of_all_slots_over_all_their_time(tmp_path: Path):
    """Not the mean of the shards' shares: 16 of 20 slot-seconds, and 3 of 60 while the engines drained."""
    writer = NegativeSetWriter(str(tmp_path / "set"), JOB, SIGNALS)
    writer.begin()
    of_shards = [{"filled": 16.0, "all": 20.0}, None, {"filled": 3.0000004, "all": 60.0}]
    for index, slots in enumerate(of_shards):
        share = slots and slots["filled"] / slots["all"]
        more: Any = {"seconds": {}, "layout": "packed", "occupancy": share, "slot_seconds": slots}
        writer.write_shard(index, [group(index)], [], **more)
    writer.finish(3)
    manifest = NegativeSet(str(tmp_path / "set")).manifest
    assert [shard.slot_seconds for shard in manifest.shards] == [*of_shards[:2], {"filled": 3.0, "all": 60.0}]
    assert manifest.occupancy == 19 / 80
    assert "slot_seconds" not in json.loads(manifest.to_json())["shards"][1]
    manifest.shards = manifest.shards[1:2]
    assert manifest.occupancy is None


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
        "has not the columns of schema version 4: column response is missing, the schema says string. Generate the set "
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


def test_a_set_says_how_many_groups_it_has_and_what_they_come_from(negative_set: Path, reference: Path) -> None:
    found = NegativeSet(str(negative_set))
    origin = f"data set 'facts', split 'train', reference '{reference}'"
    assert found.manifest.origin == origin
    assert found.summary == f"negative set '{negative_set}': 48 groups from {origin}"


# As a library: `from data import NegativeSet`.


def test_a_set_is_iterated_and_read_as_one_table(finished: Path):
    import data

    negative_set = data.NegativeSet(str(finished))
    assert data.NegativeSet is NegativeSet
    assert list(negative_set) == [group(1), group(2), group(3)]
    assert negative_set.table().schema.equals(group_schema(SIGNALS))
    frame = negative_set.to_pandas(["id", "response_ids"])
    assert list(frame.columns) == ["id", "response_ids"]
    assert [list(ids) for ids in frame["response_ids"]] == [group(n).response_ids for n in (1, 2, 3)]
    rows = negative_set.to_datasets()
    assert (rows.num_rows, rows[2]["id"]) == (3, group(3).id)
    assert [n["strategy"] for n in rows[0]["negatives"]] == ["an", "bn"]


def test_a_column_that_no_set_has_is_refused_in_one_line(finished: Path):
    with pytest.raises(UserError, match=r"has no column 'promt'. Did you mean 'prompt'\? Its columns: id, prompt, "):
        NegativeSet(str(finished)).to_pandas(["promt"])


def test_what_a_room_does_not_export_is_an_attribute_error():
    import data

    with pytest.raises(AttributeError, match="module 'data' has no attribute 'Negatives'"):
        _ = data.Negatives
