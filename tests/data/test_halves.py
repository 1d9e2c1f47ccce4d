"""Which rows are held out: another source's, or a share of them by their content."""

import hashlib
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import numpy as np
import pytest

from data.sources import facts, source_options
from data.sources.examples import Example, fingerprint, open_source
from data.sources.source_options import SourceOptions
from data.sources.splits import in_turns, num_train
from tests.support.source_rows import ROWS, TASK, lines
from tests.support.written import refusal

pytestmark = pytest.mark.usefixtures("own_cache")


def said(examples: Sequence[Example]) -> list[tuple[str, str]]:
    return [(e.prompt, e.split) for e in examples]


def test_another_data_set_holds_the_test_rows(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:10]))
    (tmp_path / "b.jsonl").write_bytes(lines([*ROWS[10:12], ROWS[0]]))
    options: dict[str, Any] = {"test_dataset": str(tmp_path / "b.jsonl")}
    source = open_source(str(tmp_path / "a.jsonl"), TASK, **options)
    found = list(source)
    both = "13 rows: 10 train, 3 held out; 1 of train is held out too"
    assert source.summary == both
    assert {(e.prompt, e.split) for e in found if e.problem is None} >= {("p10", "test"), ("p11", "test")}
    assert [e.problem for e in found if e.problem] == [("duplicate", "same prompt and response as an earlier row")]
    only = open_source(str(tmp_path / "a.jsonl"), TASK, "test", **options)
    assert {e.prompt for e in only} == {"p10", "p11", "p0"}
    assert only.summary == f"{both}; read: 3 of test"
    assert only.fingerprint == fingerprint(only)
    message = refusal(lambda: open_source("facts", TASK, test_share=0.1, **options))
    assert message.startswith("give either --test_share or --test_dataset, not both")
    (tmp_path / "c.jsonl").write_bytes(lines([{"prompt": "p"}]))
    message = refusal(lambda: open_source("facts", TASK, test_dataset=str(tmp_path / "c.jsonl")))
    assert f"'{tmp_path}/c.jsonl' has no column 'completion'" in message


@pytest.mark.parametrize("streaming", [False, True])
def test_of_sources_with_splits_those_that_are_not_read_are_named(tmp_path: Path, streaming: bool):
    folder, alone = tmp_path / "folder", tmp_path / "a.jsonl"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(lines(ROWS[:6]))
    (folder / "test.jsonl").write_bytes(lines(ROWS[6:8]))
    alone.write_bytes(lines(ROWS[20:30]))
    size = {} if streaming else {"train": " (6 lines)", "test": " (2 lines)"}
    cases: list[tuple[Path, dict[str, Any], list[str], set[str]]] = [
        (alone, {"test_dataset": str(folder)}, ["train"], {"p6", "p7"}),
        (folder, {"test_dataset": str(alone)}, ["test"], {f"p{i}" for i in range(20, 30)}),
        (folder, {"test_share": 0.0}, ["test"], set()),
        (folder, {"test_dataset": str(folder)}, ["test", "train"], {"p6", "p7"}),
        (folder, {}, [], {"p6", "p7"}),
    ]
    for dataset, options, unread, held_out in cases:
        source = open_source(str(dataset), TASK, streaming=streaming, **options)
        left = ", ".join(f"the {name} split of '{folder}'{size.get(name, '')}" for name in unread)
        assert source.summary.partition("; not read: ")[2] == left
        assert {e.prompt for e in source if e.split == "test"} == held_out
    same = open_source("facts", TASK, "test", streaming=streaming, test_dataset="facts")  # two parts that are equal
    assert {e.prompt for e in same} == {row["prompt"] for row in facts.examples()}


def test_rows_of_both_halves_are_counted(tmp_path: Path):
    for train, test, said in ((ROWS[:6], ROWS[6:8], ""), (ROWS[:6], ROWS[5:8], "; 1 of train is held out too"),
                              ([*ROWS[:6], ROWS[5]], ROWS[4:8], "; 3 of train are held out too")):  # fmt: skip
        (tmp_path / "train.jsonl").write_bytes(lines(train))
        (tmp_path / "test.jsonl").write_bytes(lines(test))
        rows = f"{len(train) + len(test)} rows: {len(train)} train, {len(test)} held out"
        assert open_source(str(tmp_path), TASK).summary == rows + said


def test_a_row_that_changes_its_half_makes_another_job(tmp_path: Path):
    found = []
    for train, test in (([0, 1], [2]), ([0], [2, 1])):
        (tmp_path / "train.jsonl").write_bytes(lines([ROWS[i] for i in train]))
        (tmp_path / "test.jsonl").write_bytes(lines([ROWS[i] for i in test]))
        source = open_source(str(tmp_path), TASK)
        found.append((sorted((e.prompt, e.split) for e in source), SourceOptions().describe_source(source)))
    assert found[0] != found[1]
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_test_split_of_another_shape_leaves_train_readable(tmp_path: Path, streaming: bool):
    unlabelled = datasets.Dataset.from_list([{"prompt": "p"}])
    for name, test in (("saved", unlabelled), ("empty", datasets.Dataset.from_dict({"prompt": [], "completion": []}))):
        parts: Any = {"train": datasets.Dataset.from_list(ROWS[:6]), "test": test}
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / name))
    saved = str(tmp_path / "saved")
    options: dict[str, Any] = {"streaming": streaming}
    message = refusal(lambda: list(open_source(saved, TASK, **options)))
    assert message.startswith(f"the test split of data set '{saved}' has no column 'completion', which task")
    assert message.endswith(" Or hold out rows of its train split instead: --test_share.")
    assert {e.prompt for e in open_source(saved, TASK, "train", **options)} == {f"p{i}" for i in range(6)}
    assert len(list(open_source(saved, TASK, test_share=0.5, **options))) == 6
    message = refusal(lambda: list(open_source(str(tmp_path / "empty"), TASK, **options)))
    assert message.startswith(f"the test split of data set '{tmp_path}/empty' has no rows.")


@pytest.mark.parametrize(("share", "train"), [(0.5, 30), (0.1, 54), (0.25, 45), (0.0, 60), (0.99, 0), (1 / 3, 40)])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_share_of_the_rows_is_held_out_by_their_content(tmp_path: Path, share: float, train: int, streaming: bool):
    rows = list(ROWS)
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    random.Random(1).shuffle(rows)
    (tmp_path / "b.jsonl").write_bytes(lines(rows))
    found, other = (
        list(open_source(str(tmp_path / name), TASK, streaming=streaming, test_share=share))
        for name in ("a.jsonl", "b.jsonl")
    )
    assert set(said(found)) == set(said(other))
    held_out = {e.prompt for e in found if e.split == "test"}
    assert len(found) == 60
    by_hash = sorted(found, key=lambda e: hashlib.sha256(f"0:{e.id}".encode()).digest())
    if streaming:  # whose hash, as a fraction of all hashes, is not below the share that is left
        hashes = [int(hashlib.sha256(f"0:{e.id}".encode()).hexdigest()[:16], 16) / 2**64 for e in found]
        assert held_out == {e.prompt for e, fraction in zip(found, hashes, strict=True) if fraction >= 1 - share}
    else:  # the last ones by their hash
        assert said(found) == said(other)
        assert held_out == {e.prompt for e in by_hash[train:]}
    if share < 0.5:
        half = open_source(str(tmp_path / "a.jsonl"), TASK, "test", streaming=streaming)
        assert held_out <= {e.prompt for e in half}


# Of ROWS, those whose hash lies in the last half of all hashes, the ones in the last quarter first.
LAST_HALF = [
    *(1, 7, 11, 14, 15, 16, 20, 25, 28, 29, 30, 31, 35, 36, 39, 43, 49, 50, 52, 55),
    *(2, 10, 12, 24, 33, 40, 47, 51, 56, 58),
]


@pytest.mark.parametrize(("share", "of_stream"), [(0.5, LAST_HALF), (0.25, LAST_HALF[:20])])
def test_a_stream_holds_out_the_rows_that_a_table_does_but_for_those_between_their_bounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, share: float, of_stream: list[int]
):
    """One order, that of the hashes, is cut at a share of all hashes, or at a share of the rows that there are."""
    caplog.set_level(logging.INFO)
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    path, kept = str(tmp_path / "a.jsonl"), num_train(60, share)
    table, stream = (
        {e.prompt for e in SourceOptions(test_share=share).open_source(path, "test", streaming=streaming)}
        for streaming in (False, True)
    )
    assert stream == {f"p{number}" for number in of_stream}
    assert len(table) == 60 - kept
    assert table <= stream
    assert (table == stream) == (len(of_stream) == 60 - kept) == (share == 0.5)
    assert [record.getMessage() for record in caplog.records if record.name == source_options.__name__] == [
        f"{path}: 60 rows: {kept} train, {60 - kept} held out; read: {60 - kept} of test",
        f"{path}: rows of a stream: about {100 * share:g}% of them are held out, row by row: a prompt of several "
        "may be in both halves",
    ]


def test_the_default_is_a_half_as_it_always_was(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:59]))
    plain, half = (open_source(str(tmp_path / "a.jsonl"), TASK, test_share=share) for share in (None, 0.5))
    assert list(plain) == list(half)
    assert plain.fingerprint == half.fingerprint
    assert plain.summary == "59 rows: 29 train, 30 held out"
    assert [e.split for e in plain] == [*["train", "test"] * 29, "test"]


def test_the_embedded_worlds_halves_are_those_of_every_set_made_before_0_7():
    found = {split: open_source("facts", TASK, split, limit) for split, limit in (("train", None), ("all", 100))}
    prints = {split: str(source.fingerprint)[:16] for split, source in found.items()}
    assert prints == {"train": "58cb8ec65f67f2e7", "all": "affc6946f001f8c9"}


@pytest.mark.parametrize("share", [-0.1, 1.0, 7.0])
def test_a_share_that_is_none_is_refused(share: float):
    assert "--test_share must be from 0 to below 1, got" in refusal(
        lambda: open_source("facts", TASK, test_share=share)
    )


@pytest.mark.parametrize(("train", "test"), [(4, 4), (4, 5), (9, 1), (90, 10), (0, 3), (3, 0), (1, 7)])
def test_both_halves_take_turns_so_that_a_limit_has_them_in_proportion(train: int, test: int):
    order = in_turns(train, test)
    assert sorted(order.tolist()) == list(range(train + test))
    is_train = order < train
    assert order[is_train].tolist() == list(range(train))
    assert order[~is_train].tolist() == list(range(train, train + test))
    shares = np.cumsum(is_train) / np.arange(1, train + test + 1)
    assert all(abs(s - train / (train + test)) * n <= 1 for n, s in enumerate(shares, start=1))


def test_no_rounding_moves_a_row():
    assert [num_train(10, share) for share in (0.1, 0.3, 0.7, 0.9)] == [9, 7, 3, 1]
    assert [num_train(count, 0.5) for count in range(5)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("share", [0.5, 0.1, 0.0])
def test_all_rows_of_a_prompt_are_in_one_half(tmp_path: Path, share: float):
    """The prompts have 1 to 10 rows each, and some rows are there twice."""
    rows = [{"prompt": f"p{i}", "completion": f"c{j}"} for i in range(200) for j in range(1 + i % 10)]
    for name, content in (("a", [*rows, *rows[:50]]), ("b", [*rows[:50], *rows][::-1])):
        (tmp_path / f"{name}.jsonl").write_bytes(lines(content))
    source, other = (open_source(str(tmp_path / f"{name}.jsonl"), TASK, test_share=share) for name in "ab")
    found = list(source)
    halves: dict[str, set[str]] = {}
    for example in found:
        halves.setdefault(example.prompt, set()).add(example.split)
    assert {len(of_prompt) for of_prompt in halves.values()} == {1}
    held_out = sum(e.split == "test" for e in found)
    assert abs(held_out - share * 1150) <= 5  # half of the largest prompt
    assert "held out too" not in source.summary
    assert f"{1150 - held_out:,} train, {held_out} held out" in source.summary
    assert set(said(found)) == set(said(list(other)))
    if share == 0.5:  # chance decides, not how many rows a prompt has
        assert 40 <= sum(found == {"test"} for name, found in halves.items() if int(name[1:]) % 10 >= 5) <= 60


def test_only_prompts_of_several_rows_move_and_those_at_the_border(tmp_path: Path):
    """Rows used to be split one by one, in the order of their hashes."""
    (tmp_path / "a.jsonl").write_bytes(lines([*ROWS, {"prompt": "p0", "completion": "other"}]))
    found = list(open_source(str(tmp_path / "a.jsonl"), TASK))
    by_hash = sorted(found, key=lambda e: hashlib.sha256(f"0:{e.id}".encode()).digest())
    moved = [e.prompt for e in found if (e.split == "test") != (e in by_hash[30:])]
    assert len(moved) <= 2
    assert "p0" in moved or not moved


def test_rows_of_chats_that_begin_alike_are_in_one_half(tmp_path: Path):
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{j}"}]}
        for i in range(20)
        for j in range(3)
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    halves: dict[str, set[str]] = {}
    for example in open_source(str(tmp_path / "a.jsonl"), "conversational"):
        halves.setdefault(str(example.prompt), set()).add(example.split)
    assert len(halves) == 20
    assert {len(of_prompt) for of_prompt in halves.values()} == {1}
