"""A set has one owner: two drivers, and stragglers that were taken over from, at exact points of what they write."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data.command.errors import UserError
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from data.storage import Folder
from tests.support.owners import die
from tests.support.written import JOB, SHARDS, SIGNALS, all_files, refusal, write_part, writer

# What a job of three shards puts in place, in order.
PLACES = [
    *(".claim/00001.json", "_job/job.json"),
    *(name for i in range(3) for name in (f"shard-{i:05d}.parquet", f"_job/shard-{i:05d}.json")),
    *("rejects.parquet", "manifest.json"),
]


def make(driver: NegativeSetWriter) -> None:
    assert driver.begin()
    for index in range(len(SHARDS)):
        write_part(driver, index)
    driver.finish(len(SHARDS))


def at(monkeypatch: pytest.MonkeyPatch, out: Path, place: str, moment: str, happens: Callable[[], None]) -> None:
    """Something happens once, just before or after a file of the set is put in its place."""
    puts = {"replace": os.replace, "link": os.link}

    def patched(put: Callable[[str, str], None]) -> Callable[[str, str], None]:
        def put_stub(source: str, target: str) -> None:
            here = os.path.relpath(target, out) == place
            if here:
                for name, original in puts.items():
                    monkeypatch.setattr(os, name, original)
            if here and moment == "before":
                happens()
            put(source, target)
            if here and moment == "after":
                happens()

        return put_stub

    for name, put in puts.items():
        monkeypatch.setattr(os, name, patched(put))


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("place", PLACES)
def test_of_two_drivers_one_makes_the_set_and_the_other_is_refused(
    place: str, moment: str, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one starts while the first writes; before the first has its claim it is the winner."""
    out, said = tmp_path / "set", []

    def start_another() -> None:
        other = writer(out)
        try:
            if other.begin():
                for index in range(len(SHARDS)):
                    write_part(other, index)
                other.finish(len(SHARDS))
            said.append("finished")
        except UserError as error:
            other.release()
            said.append(str(error))

    at(monkeypatch, out, place, moment, start_another)
    first = writer(out)
    if (place, moment) == (PLACES[0], "before"):
        assert not first.begin()  # the other one was faster, and has finished by now
        assert said == ["finished"]
    else:
        make(first)
        assert len(said) == 1
        assert "is in use by another run" in said[0]
    assert all_files(out) == expected


@pytest.mark.parametrize("place", [place for place in PLACES if place not in (PLACES[0], "_job/job.json")])
def test_a_straggler_in_the_middle_of_a_write_leaves_the_set_of_its_successor_as_it_is(
    place: str, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A straggler has seen that it is the owner, and stands still until its successor has finished the set."""
    out, straggler = tmp_path / "set", writer(tmp_path / "set")

    def succeed() -> None:
        die(straggler.claim)
        make(writer(out))
        assert all_files(out) == expected

    at(monkeypatch, out, place, "before", succeed)
    assert refusal(lambda: make(straggler))
    straggler.release()
    straggler.end()
    assert all_files(out) == expected
    assert len(NegativeSet(str(out))) == 3


REMOVED = ["shard-00000.parquet", "_job/shard-00000.json", "manifest.json"]


@pytest.mark.parametrize("name", REMOVED)
def test_a_straggler_in_the_middle_of_a_removal_puts_back_what_its_successor_has_made(
    name: str, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A straggler has seen that it is the owner, and then removes a file that was of nobody."""
    out, straggler, remove = tmp_path / "set", writer(tmp_path / "set"), Folder.remove
    straggler.begin()
    straggler.folder.write(name, b"of a worker that was killed")

    def succeed_stub(folder: Folder, removed: str) -> None:
        monkeypatch.setattr(Folder, "remove", remove)
        assert removed == name
        die(straggler.claim)
        make(writer(out))
        monkeypatch.setattr(straggler, "check", lambda: None)  # asked before
        straggler.discard(name)

    monkeypatch.setattr(Folder, "remove", succeed_stub)
    with contextlib.suppress(UserError):
        straggler.discard(name)
    assert {key: value for key, value in all_files(out).items() if not key.startswith("_job/")} == expected


def test_a_straggler_that_gives_up_keeps_its_successors_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, straggler, finished = tmp_path / "set", writer(tmp_path / "set"), NegativeSetWriter.finished
    straggler.begin()
    successor = writer(out)

    def succeed_stub(self: NegativeSetWriter) -> set[int]:
        monkeypatch.setattr(NegativeSetWriter, "finished", finished)
        die(straggler.claim)
        successor.begin()
        write_part(successor, 0)
        return set()

    monkeypatch.setattr(NegativeSetWriter, "finished", succeed_stub)
    straggler.release()
    assert successor.finished() == {0}
    assert (out / "_job/job.json").exists()
    successor.check()


@pytest.mark.parametrize("done", [[], [0], [0, 1, 2]])
def test_a_straggler_neither_writes_nor_releases_what_its_successor_is_making(
    done: list[int], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "set"
    straggler = writer(out)
    straggler.begin()
    die(straggler.claim)
    successor = writer(out)
    successor.begin()
    for index in done:
        write_part(successor, index)
    before = all_files(out)
    if 1 not in done:
        assert "another run has taken over" in refusal(lambda: write_part(straggler, 1))
    assert refusal(lambda: straggler.finish(3))
    straggler.release()
    assert all_files(out) == before
    for index in range(len(SHARDS)):
        write_part(successor, index)
    successor.finish(len(SHARDS))
    straggler.release()
    assert all_files(out) == expected


def test_a_shard_without_a_record_that_an_orphan_wrote_late_is_made_anew(
    tmp_path: Path, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "set"
    driver = writer(out)
    driver.begin()
    (out / "shard-00001.parquet").write_bytes(b"of an orphan")
    for index in range(len(SHARDS)):
        write_part(driver, index)
    driver.finish(len(SHARDS))
    assert all_files(out) == expected


def test_a_record_of_another_job_is_no_record(tmp_path: Path) -> None:
    """The record arrived when its directory had been given up and claimed by another job."""
    other = NegativeSetWriter(str(tmp_path / "other"), {**JOB, "seed": 2}, SIGNALS)
    other.begin()
    write_part(other, 0)
    driver = writer(tmp_path / "set")
    driver.begin()
    for name in ("shard-00000.parquet", "_job/shard-00000.json"):
        (tmp_path / "set" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert driver.entry(0) is None
    assert driver.mend() == ["shard-00000.parquet"]


def test_a_job_that_is_given_up_leaves_its_log_and_the_directory_is_free(tmp_path: Path) -> None:
    out = tmp_path / "set"
    driver = NegativeSetWriter(str(out), JOB, SIGNALS)
    assert driver.begin()
    (out / "_job/log").write_text("of a library")
    driver.release()
    assert [path for path in out.rglob("*") if path.is_file()] == [out / "_job/log"]
    other = NegativeSetWriter(str(out), {**JOB, "seed": 1}, SIGNALS)
    assert other.begin()
    other.release()


def test_a_finished_set_is_never_released(tmp_path: Path, expected: dict[str, bytes]) -> None:
    out = tmp_path / "set"
    driver = writer(out)
    make(driver)
    driver.release()
    owner = writer(out)
    owner.claim = driver.claim
    owner.release()
    assert all_files(out) == expected


def test_a_job_in_a_new_directory_that_fails_early_leaves_nothing(tmp_path: Path) -> None:
    driver = writer(tmp_path / "new")
    driver.begin()
    driver.release()
    assert list(tmp_path.iterdir()) == []
    driver = writer(tmp_path / "new")
    driver.begin()
    (tmp_path / "new/.tmp-x").write_bytes(b"of a worker that was killed")
    driver.release()
    assert list(tmp_path.iterdir()) == []
    driver = writer(tmp_path / "new")
    driver.begin()
    write_part(driver, 0)
    driver.release()
    assert set(all_files(tmp_path / "new")) == {"_job/job.json", "_job/shard-00000.json", "shard-00000.parquet"}
