"""data/claim.py: one owner of a directory at a time, and who is dead."""

import dataclasses
import json
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data import claim as claims
from data.claim import Claim, claimed
from data.command.errors import UserError
from data.storage import Folder
from tests.support.owners import die, replace_owner
from tests.support.written import all_files, refusal


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """A directory that does not exist yet."""
    if request.param == "disk":
        yield Folder(str(tmp_path / "out"))
    else:
        yield Folder(f"memory://{tmp_path}/out")
        fsspec.filesystem("memory").store.clear()


def test_a_directory_in_use_is_refused_and_its_owner_named(folder: Folder) -> None:
    with claimed(folder.path) as first:
        said = refusal(lambda: Claim.take(folder))
        assert said.startswith(f"'{folder.path}' is in use by another run (process {os.getpid()} on ")
        assert first.holds()
    assert not folder.exists()


def test_a_directory_that_was_there_stays_and_another_run_may_claim_it(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    for _ in range(2):
        with claimed(str(tmp_path)):
            assert len(all_files(tmp_path)) == 2
    assert all_files(tmp_path) == {"mine.txt": b"kept"}


def test_a_claim_is_given_back_whatever_ends_the_run(folder: Folder) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(folder.path):
        raise KeyboardInterrupt
    assert not folder.exists()


def test_a_dead_owner_of_this_host_is_replaced_at_once_and_its_straggler_knows(folder: Folder) -> None:
    first = Claim.take(folder)
    die(first)
    worker = pickle.loads(pickle.dumps(first))
    worker.check()
    second = Claim.take(folder)
    assert second.number == 2
    for straggler in (first, worker):
        with pytest.raises(UserError, match="another run has taken over"):
            straggler.check()
    first.end()
    second.check()
    second.end()
    assert not folder.exists()


def test_a_process_that_has_the_number_of_a_dead_owner_is_not_taken_for_it(folder: Folder) -> None:
    replace_owner(Claim.take(folder), started="1")
    assert Claim.take(folder).number == 2


def test_of_two_runs_that_find_a_dead_owner_one_takes_over(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run is faster than the other, at the moment when the first has seen that the owner is dead."""
    die(Claim.take(folder))
    create, faster = Folder.create, []

    def create_stub(self: Folder, name: str, content: bytes) -> bool:
        monkeypatch.setattr(Folder, "create", create)
        faster.append(Claim.take(folder))
        return create(self, name, content)

    monkeypatch.setattr(Folder, "create", create_stub)
    assert "is in use by another run" in refusal(lambda: Claim.take(folder))
    assert faster[0].number == 2
    faster[0].check()


def test_a_claim_that_ended_is_not_ours_when_others_have_claimed_since(folder: Folder) -> None:
    first = Claim.take(folder)
    first.end()
    with pytest.raises(UserError, match="has ended"):
        first.check()
    second = Claim.take(folder)
    first.end()
    assert (second.number, second.holds()) == (1, True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT": 0.02, "WATCH_EVERY": 0.02, "DEAD_AFTER": 0.3}.items():
        monkeypatch.setattr(claims, name, seconds)


def test_a_heart_that_beats_on_another_host_is_not_dead(folder: Folder, quick: None) -> None:
    first = Claim.take(folder)
    replace_owner(first, host="elsewhere")
    assert "on elsewhere, since" in refusal(lambda: Claim.take(folder))
    first.end()
    assert not folder.exists()


def test_a_heart_that_stands_still_on_another_host_is_dead(folder: Folder, quick: None) -> None:
    first = Claim.take(folder)
    first._ended.set()
    replace_owner(first, host="elsewhere")
    assert Claim.take(folder).number == 2


def test_a_heart_stops_when_another_run_has_taken_over(folder: Folder, quick: None) -> None:
    first = Claim.take(folder)
    die(first)
    second = Claim.take(folder)
    assert first._heart is not None
    first._heart.join(5)
    assert not first._heart.is_alive()
    second.end()
    assert not folder.exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b'{"token": '])
def test_a_damaged_claim_is_taken_over_from(folder: Folder, quick: None, content: bytes) -> None:
    folder.write(".claim/00003.json", content)
    taken = Claim.take(folder)
    assert taken.number == 4
    taken.end()
    assert folder.names() == set()


@pytest.mark.parametrize("name", ["3.json", "0000003.json", "\u0663\u0663\u0663\u0663\u0663.json"])
def test_a_file_that_is_no_claim_is_not_taken_for_one(folder: Folder, name: str) -> None:
    folder.write(f".claim/{name}", b"{}")
    taken = Claim.take(folder)
    assert taken.number == 1
    taken.end()


def test_a_claim_that_is_no_file_is_taken_over_from(tmp_path: Path, quick: None) -> None:
    (tmp_path / ".claim/00002.json").mkdir(parents=True)
    (tmp_path / ".claim/00003.json").symlink_to("nowhere")
    taken = Claim.take(Folder(str(tmp_path)))
    assert taken.number == 4
    taken.end()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_ends_leaves_that_of_a_successor_which_came_just_now(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, holds, successors = Claim.take(folder), Claim.holds, []

    def holds_stub(self: Claim) -> bool:
        monkeypatch.setattr(Claim, "holds", holds)
        die(first)
        successors.append(Claim.take(folder))
        return True

    monkeypatch.setattr(Claim, "holds", holds_stub)
    first.end()
    successors[0].check()


def test_a_claim_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk_stub(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk_stub)
    assert "No space left" in refusal(lambda: Claim.take(Folder(str(tmp_path / "out"))))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_created_once(folder: Folder) -> None:
    assert folder.create("a/b", b"first")
    assert not folder.create("a/b", b"second")
    assert folder.create("a/b", b"first")  # a put that was sent again because its answer was lost
    assert folder.read("a/b") == b"first"


def test_a_disk_without_hard_links_creates_a_file_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link_stub(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link_stub)
    folder = Folder(str(tmp_path))
    assert (folder.create("a", b"first"), folder.create("a", b"second")) == (True, False)
    assert all_files(tmp_path) == {"a": b"first"}


def test_of_many_threads_one_creates_the_file(tmp_path: Path) -> None:
    folder, won = Folder(str(tmp_path)), []
    threads = [
        threading.Thread(target=lambda number=number: won.append((folder.create("a", b"%d" % number), number)))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((_, winner),) = [entry for entry in won if entry[0]]
    assert all_files(tmp_path) == {"a": b"%d" % winner}


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000, b"{}", b"[]", b'"text"',
        *(json.dumps({"pid": pid}).encode() for pid in ("12", 10**30, -1, None, 1.5)),
    ],
)  # fmt: skip
def test_a_claim_that_holds_anything_is_a_damaged_one(content: bytes, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    claim = Claim.take(folder)
    claim.end()
    whole = dataclasses.asdict(claim.owner)
    changed = json.dumps({**whole, **json.loads(content)}).encode() if b"pid" in content else content
    folder.write(".claim/00001.json", changed)
    assert claims._highest(folder) == (1, None)


@pytest.mark.parametrize("anew", [True, False])
@pytest.mark.parametrize("late", ["judged", "created"])
def test_a_verdict_of_death_is_of_that_claim_alone(
    folder: Folder, anew: bool, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While we found the owner dead others took over and ended, so that numbers began again."""
    others: list[Claim] = []

    def meanwhile() -> None:
        monkeypatch.undo()
        Claim.take(folder).end()
        others.extend([Claim.take(folder)] if anew else [])

    def judged(*args: Any) -> bool:
        found = is_dead(*args)
        meanwhile()
        return found

    def created(claim: Claim) -> bool:
        meanwhile()
        return create(claim)

    folder.write("there", b"")
    die(Claim.take(folder))
    is_dead, create = claims._is_dead, Claim._create
    if late == "judged":
        monkeypatch.setattr(claims, "_is_dead", judged)
    else:
        monkeypatch.setattr(Claim, "_create", created)
    if anew:
        assert "is in use by another run" in refusal(lambda: Claim.take(folder))
        others[0].check()
        others[0].end()
    else:
        with claimed(folder.path) as claim:
            assert claim.number == 1
    assert [*folder.names(), *folder.names(".claim")] == ["there"]
