"""What is damaged in a set, while it is made and when it is finished, is found, said and made again."""

import dataclasses
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.command.errors import UserError
from data.manifest import shard_name
from data.schema import Reject, rejects_to_table
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from data.storage import Folder, sha256
from tests.support.written import (
    JOB,
    REJECTS,
    SHARDS,
    SIGNALS,
    all_files,
    go_on,
    put_no_file,
    refusal,
    unfinished,
    write_part,
    write_set,
    writer,
)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change(path: Path) -> None:
    """Change one bit in the middle of a file, whose size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE = [truncate, change, empty, Path.unlink]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(("shard-00001.parquet", damage) for damage in DAMAGE),
        *(("_job/shard-00001.json", damage) for damage in (truncate, empty, Path.unlink)),
    ],
)
def test_a_shard_that_is_not_what_its_record_says_is_made_again_on_resume(
    file: str,
    damage: Callable[[Path], None],
    tmp_path: Path,
    expected: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "set"
    unfinished(out, [0, 1]).end()
    damage(out / file)
    assert go_on(out) == [1, 2]
    lost = (file, damage) == ("_job/shard-00001.json", Path.unlink)  # then it was not finished
    assert ("damaged, and made again: shard-00001.parquet" in caplog.text) == (not lost)
    assert all_files(out) == expected


@pytest.mark.parametrize("name", ["shard-1.json", "shard-0000001.json", "shard-\u0661\u0661\u0661\u0661\u0661.json"])
def test_a_file_that_is_no_record_is_not_taken_for_one(name: str, tmp_path: Path, expected: dict[str, bytes]) -> None:
    out = tmp_path / "set"
    unfinished(out, [0]).end()
    (out / "_job" / name).write_bytes((out / "_job/shard-00000.json").read_bytes())
    assert go_on(out) == [1, 2]
    assert all_files(out) == expected


@pytest.mark.parametrize("file", [".claim/00001.json", "_job/job.json", "_job/shard-00001.json", "manifest.json"])
def test_a_store_that_fails_for_a_moment_is_no_damage(
    file: str, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is finished is made again, and nobody takes over."""
    out = tmp_path / "set"
    driver = unfinished(out, [0, 1])
    if file == "manifest.json":
        write_part(driver, 2)
        driver.finish(3)
        (out / "_job").mkdir()
    elif not file.startswith(".claim"):
        driver.end()
    before, read = all_files(out), Folder.read

    def failing_stub(self: Folder, name: str) -> bytes:
        if name == file:
            raise UserError("cannot read: Service Unavailable")
        return read(self, name)

    monkeypatch.setattr(Folder, "read", failing_stub)
    assert refusal(writer(out).begin) == "cannot read: Service Unavailable"
    monkeypatch.undo()
    if file.startswith(".claim"):
        assert all_files(out) == before
        driver.end()
    assert go_on(out) == ([] if file == "manifest.json" else [2])
    assert all_files(out) == expected


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to itself"])
def test_what_is_no_file_in_the_place_of_one_is_damage(kind: str, tmp_path: Path, expected: dict[str, bytes]) -> None:
    out = tmp_path / "set"
    unfinished(out, [0, 1]).end()
    for name in ("shard-00000.parquet", "_job/shard-00001.json"):
        (out / name).unlink()
        put_no_file(kind, out / name)
    assert go_on(out) == [0, 1, 2]
    assert all_files(out) == expected


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_shard_damaged_after_its_record_is_not_sealed(
    damage: Callable[[Path], None], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "set"
    driver = unfinished(out, [0, 1, 2])
    damage(out / "shard-00002.parquet")
    assert "1 of 3 shards are not finished (first: shard-00002.parquet)" in refusal(lambda: driver.finish(3))
    assert not (out / "manifest.json").exists()
    write_part(driver, 2)
    driver.finish(3)
    assert all_files(out) == expected


def test_a_worker_that_finds_its_shard_damaged_makes_it_again(tmp_path: Path) -> None:
    driver = unfinished(tmp_path, [0])
    whole = (tmp_path / "shard-00000.parquet").read_bytes()
    truncate(tmp_path / "shard-00000.parquet")
    write_part(driver, 0)
    assert (tmp_path / "shard-00000.parquet").read_bytes() == whole


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("file", "made"),
    [
        ("shard-00000.parquet", [0]),
        ("shard-00001.parquet", [1]),
        ("rejects.parquet", [0, 2]),  # the shards that have any
    ],
)
def test_a_finished_set_that_is_damaged_is_repaired_by_the_same_command(
    file: str,
    made: list[int],
    damage: Callable[[Path], None],
    tmp_path: Path,
    expected: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "set"
    write_set(str(out))
    damage(out / file)
    assert go_on(out) == made
    assert f"damaged or missing, and made again: {file}" in caplog.text
    assert all_files(out) == expected


def test_a_repair_that_is_interrupted_goes_on(tmp_path: Path, expected: dict[str, bytes]) -> None:
    out = tmp_path / "set"
    write_set(str(out))
    (out / "shard-00000.parquet").unlink()
    manifest = (out / "manifest.json").read_bytes()
    driver = writer(out)
    assert driver.begin()
    driver.end()
    (out / "manifest.json").write_bytes(manifest)  # as if it were killed before it removed it
    assert go_on(out) == [0]
    assert all_files(out) == expected


ALL = [shard_name(index) for index in range(3)]


@pytest.mark.parametrize("lost", [ALL[:1], ALL, ["rejects.parquet"], [*ALL, "rejects.parquet"]])
@pytest.mark.parametrize("card", [False, True])
def test_a_repair_that_fails_before_its_first_shard_goes_on_with_the_same_command(
    card: bool, lost: list[str], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "set"
    write_set(str(out))
    if card:
        (out / "README.md").write_bytes(b"card")
        expected["README.md"] = b"card"
    for name in lost:
        (out / name).unlink()
    for _ in range(2):
        driver = writer(out)
        assert driver.begin()
        driver.release()
    assert {name: content for name, content in all_files(out).items() if not name.startswith("_job/")} == {
        name: content for name, content in expected.items() if name not in [*lost, "manifest.json"]
    }
    assert go_on(out) == [
        index for index in range(3) if ALL[index] in lost or ("rejects.parquet" in lost and index != 1)
    ]
    assert all_files(out) == expected


def test_a_job_whose_shards_are_lost_behind_its_card_goes_on_with_the_same_command(
    tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """The job was killed between card and manifest."""
    out = tmp_path / "set"
    driver = unfinished(out, [0, 1, 2])
    driver.collect(3)
    driver.end()
    for name in ALL:
        (out / name).unlink()
    driver = writer(out)
    assert driver.begin()
    driver.release()
    assert go_on(out) == [0, 1, 2]
    assert all_files(out) == expected


@pytest.mark.parametrize("damage", DAMAGE)
def test_shards_whose_rejects_are_lost_stay_until_they_are_made_again(
    damage: Callable[[Path], None], tmp_path: Path, expected: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "set"
    write_set(str(out))
    damage(out / "rejects.parquet")
    driver = writer(out)
    assert driver.begin()
    assert driver.finished() == {1}
    assert (
        "sound, but made again because rejects.parquet held their rejects: shard-00000.parquet, shard-00002.parquet. "
        "Each stays until then" in caplog.text
    )
    assert {name: (out / name).read_bytes() for name in ALL} == {name: expected[name] for name in ALL}
    driver.write_shard(0, SHARDS[1], [], seconds={}, layout="packed")  # another draw
    driver.release()
    assert writer(out).begin()
    assert (out / ALL[0]).read_bytes() == expected[ALL[1]]
    assert (out / ALL[2]).read_bytes() == expected[ALL[2]]


def reopened_without_rejects(out: Path) -> NegativeSetWriter:
    """A finished set whose rejects were lost, begun again."""
    write_set(str(out))
    (out / "rejects.parquet").unlink()
    driver = writer(out)
    assert driver.begin()
    return driver


@pytest.mark.parametrize("failed", [False, True])
def test_shards_are_kept_where_lost_rejects_are_restored(
    failed: bool, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "set"
    driver = reopened_without_rejects(out)
    driver.release() if failed else driver.end()
    (out / "rejects.parquet").write_bytes(expected["rejects.parquet"])
    assert go_on(out) == []
    assert all_files(out) == expected


def test_what_another_job_had_finished_is_not_kept(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """The power was lost while the set was repaired, and job.json with it."""
    out = tmp_path / "set"
    other = NegativeSetWriter(str(out), {**JOB, "seed": 2}, SIGNALS)
    assert other.begin()
    for index in range(3):
        write_part(other, index)
    other.finish(3)
    (out / "rejects.parquet").unlink()
    assert other.begin()
    other.end()
    (out / "_job/job.json").write_bytes(b"")
    assert go_on(out) == [0, 1, 2]
    assert all_files(out) == expected


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema_version": 3}'])
def test_a_repair_whose_old_manifest_is_lost_with_the_power_goes_on(
    content: bytes, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "set"
    reopened_without_rejects(out).end()
    (out / "_job/manifest.json").write_bytes(content)
    assert go_on(out) == [0, 2]
    assert all_files(out) == expected


def parquet(table: pa.Table) -> bytes:
    written = BytesIO()
    pq.write_table(table, written)
    return written.getvalue()


def two_rejects(**values: Any) -> bytes:
    return parquet(rejects_to_table([Reject("r1", "few", "", "p"), dataclasses.replace(REJECTS[2][0], **values)]))


OTHER_REJECTS = {
    "no Parquet": b"junk",
    "other columns": parquet(pa.table({"id": ["a", "b"], "q": [1, 2]})),
    "a row less": parquet(rejects_to_table([Reject("r1", "empty response", "", "p")])),
    "a null": two_rejects(reason=None),
    "an id below 0": two_rejects(prompt_ids=[-1]),
    "a message without a role": two_rejects(messages=[{"role": None, "content": "p"}]),
}


@pytest.mark.parametrize("content", OTHER_REJECTS.values(), ids=OTHER_REJECTS.keys())
def test_rejects_that_their_manifest_names_and_that_are_none_are_lost_ones(
    content: bytes, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "set"
    write_set(str(out))
    (out / "rejects.parquet").write_bytes(content)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["rejects"]["sha256"] = sha256(content)
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / ALL[1]).unlink()
    assert go_on(out) == [0, 1, 2]
    assert all_files(out) == expected


def test_a_sound_finished_set_is_complete_without_a_write(tmp_path: Path, expected: dict[str, bytes]) -> None:
    out = tmp_path / "set"
    write_set(str(out))
    before = {path: path.stat().st_mtime_ns for path in [out, *out.iterdir()]}
    assert go_on(out) == []
    assert {path: path.stat().st_mtime_ns for path in [out, *out.iterdir()]} == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_job_file_lost_with_the_power_is_written_anew_and_keeps_this_jobs_shards(
    content: bytes, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "set"
    unfinished(out, [0, 1]).end()
    (out / "_job/job.json").write_bytes(content)
    assert go_on(out) == [2]
    assert all_files(out) == expected


def test_a_job_file_lost_with_the_power_does_not_lend_another_jobs_shards(
    tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "set"
    other = NegativeSetWriter(str(out), {**JOB, "seed": 2}, SIGNALS)
    other.begin()
    write_part(other, 0)
    other.end()
    (out / "_job/job.json").write_bytes(b"")
    assert go_on(out) == [0, 1, 2]
    assert all_files(out) == expected


@pytest.mark.parametrize("content", [b"", b'{"schema_version": 3'])
def test_a_manifest_lost_with_the_power_while_the_job_is_there_is_written_anew(
    content: bytes, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "set"
    unfinished(out, [0, 1, 2]).end()
    (out / "manifest.json").write_bytes(content)
    assert go_on(out) == []
    assert all_files(out) == expected


def test_a_manifest_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    write_set(str(tmp_path / "set"))
    empty(tmp_path / "set/manifest.json")
    assert "the manifest of" in refusal(writer(tmp_path / "set").begin)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to itself"])
def test_what_is_no_file_in_a_finished_set_is_one_line_and_repaired(
    kind: str, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "set"
    unfinished(out, [0, 1, 2]).finish(3)
    (out / "shard-00001.parquet").unlink()
    put_no_file(kind, out / "shard-00001.parquet")
    assert "lacks shard-00001.parquet" in refusal(lambda: NegativeSet(str(out)).shard(1))
    assert go_on(out) == [1]
    assert all_files(out) == expected
    (out / "manifest.json").unlink()
    put_no_file(kind, out / "manifest.json")
    assert "has a manifest.json that is no file" in refusal(lambda: NegativeSet(str(out)))
    assert "has a manifest.json that is no file" in refusal(writer(out).begin)


def test_a_store_that_cannot_be_reached_is_not_called_a_damaged_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(str(tmp_path / "set"))

    def unreachable_stub(self: Folder, name: str) -> bytes:
        raise UserError("cannot read: the store is down")

    monkeypatch.setattr(Folder, "read", unreachable_stub)
    assert refusal(lambda: NegativeSet(str(tmp_path / "set"))) == "cannot read: the store is down"


def test_a_repaired_set_says_what_it_said_before(tmp_path: Path) -> None:
    out = tmp_path / "set"
    write_set(str(out))
    before = json.loads((out / "manifest.json").read_text())
    (out / "shard-00001.parquet").unlink()
    go_on(out)
    assert json.loads((out / "manifest.json").read_text()) == before
