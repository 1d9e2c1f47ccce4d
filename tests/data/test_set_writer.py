"""data/set_writer.py: a set is written whole, once, by one job, or not at all."""

import copy
import json
from pathlib import Path

import pytest

from data.command.errors import UserError
from data.manifest import shard_name
from data.set_writer import NegativeSetWriter
from data.storage import TEMPORARY_PREFIX
from tests.support.owners import die
from tests.support.written import (
    JOB,
    REJECTS,
    SHARDS,
    SIGNALS,
    all_files,
    group,
    refusal,
    unclaimed_files,
    write_part,
    write_set,
)


def test_files_half_written_by_a_killed_worker_are_gone_at_the_end(tmp_path: Path):
    writer = NegativeSetWriter(str(tmp_path / "set"), JOB, SIGNALS)
    writer.begin()
    for index in range(len(SHARDS)):
        write_part(writer, index)
    (tmp_path / "set" / f"{TEMPORARY_PREFIX}half").write_bytes(b"half a shard")
    writer.finish(len(SHARDS))
    assert set(all_files(tmp_path / "set")) == {"manifest.json", "rejects.parquet", *map(shard_name, range(3))}


def test_an_interrupted_job_goes_on_and_gives_the_same_bytes(finished: Path, tmp_path: Path):
    path = tmp_path / "resumed"
    first = NegativeSetWriter(str(path), JOB, SIGNALS)
    assert first.begin()
    write_part(first, 0)
    (path / shard_name(1)).write_bytes(b"written, but the crash came before its record")
    (path / ".tmp-x").write_bytes(b"half")
    (path / "_job" / ".tmp-y").write_bytes(b"half")
    die(first.claim)
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
    die(writer.claim)
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
    before = unclaimed_files(tmp_path)
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
    first = NegativeSetWriter(str(tmp_path), JOB, SIGNALS)
    first.begin()
    first.end()
    other = copy.deepcopy(JOB)
    other["model"]["name"] = "/another/path/to/ref"
    assert NegativeSetWriter(str(tmp_path), other, SIGNALS, undecided=["model.name"]).begin()


@pytest.mark.parametrize("part", ["model", "data"])
def test_only_what_does_not_decide_the_content_may_differ(tmp_path: Path, part: str):
    def writer() -> NegativeSetWriter:
        return NegativeSetWriter(str(tmp_path), job, SIGNALS, undecided=[f"{part}.name"])

    job = {**JOB, part: {**JOB.get(part, {}), "name": "one", "other": {"name": "one"}}}
    first = writer()
    first.begin()
    first.end()
    job[part] = {**job[part], "name": "two"}
    second = writer()
    assert second.begin()
    second.end()
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
def test_a_candidate_with_other_signals_than_the_sets_is_a_bug(tmp_path: Path, similarity: dict[str, float | None]):
    writer = NegativeSetWriter(str(tmp_path), JOB, SIGNALS)
    writer.begin()
    before, wrong = all_files(tmp_path), group(1)
    wrong.negatives[1].similarity = similarity
    with pytest.raises(ValueError, match=f"negative 1 of group {wrong.id} has the signals") as caught:
        writer.write_shard(0, [group(2), wrong], [], seconds={}, layout="packed")
    assert not isinstance(caught.value, UserError)
    assert all_files(tmp_path) == before


@pytest.mark.parametrize(
    ("strategy", "value", "said"),
    [
        ("bn", None, r"negative 1 \(bn\) of group .* has None of signal 'rouge', which is of bn"),
        ("an", 0.5, r"negative 0 \(an\) of group .* has 0.5 of signal 'rouge', which is of bn"),
        ("both", None, r"negative 0 \(an\) of group .* has None of signal 'embedding', which is of all"),
    ],
)
def test_a_candidate_with_no_value_or_with_one_where_there_is_none_is_a_bug(
    strategy: str, value: float | None, said: str, tmp_path: Path
):
    writer = NegativeSetWriter(str(tmp_path), {**JOB, "signals": {"rouge": {"only_of": ["bn"]}}}, SIGNALS)
    writer.begin()
    right = group(1)
    right.negatives[0].similarity["rouge"] = None
    writer.write_shard(0, [right], [], seconds={}, layout="packed")
    wrong = group(2)
    wrong.negatives[0].similarity["rouge"] = None
    if strategy == "both":
        wrong.negatives[0].similarity["embedding"] = value
    else:
        wrong.negatives[strategy == "bn"].similarity["rouge"] = value
    with pytest.raises(ValueError, match=said):
        writer.write_shard(1, [wrong], [], seconds={}, layout="packed")


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


def test_an_unfinished_set_of_schema_2_is_not_gone_on_with(tmp_path: Path):
    writer = NegativeSetWriter(str(tmp_path), JOB, SIGNALS)
    writer.begin()
    claim = json.loads((tmp_path / "_job/job.json").read_text())
    del claim["schema_version"]
    (tmp_path / "_job/job.json").write_text(json.dumps(claim))
    said = (
        "holds this job as another version of the software began it: its schema_version is (missing), this one's is 4. "
        "Finish it with that version, or choose another --out."
    )
    assert said in refusal(NegativeSetWriter(str(tmp_path), JOB, SIGNALS).begin)
