"""Groups of several sets by number: the right ones, read when needed, and the choice among their negatives."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from data.command.errors import UserError
from data.schema import Candidate
from data.shards import NegativeSet
from tests.support.numbered import group, write
from tests.support.older_schemas import write_as_schema
from trainer.groups.dataset import ContrastiveGroups
from trainer.groups.sampler import WINDOW_STEPS, StepSampler
from trainer.groups.store import GroupStore


@pytest.fixture
def sets(tmp_path: Path) -> list[NegativeSet]:
    """A set of both halves in shards of 4, and one of the training half."""
    both = [group(n, "test" if n % 2 else "train") for n in range(10)]
    return [write(tmp_path / "a", both, 4, "all"), write(tmp_path / "b", [group(n) for n in range(10, 15)], 2, "train")]


@pytest.mark.parametrize(
    ("split", "numbers", "blocks"),
    [
        ("train", [0, 2, 4, 6, 8, 10, 11, 12, 13, 14], [2, 2, 1, 2, 2, 1]),
        ("test", [1, 3, 5, 7, 9], [2, 2, 1]),
        ("all", list(range(15)), [4, 4, 2, 2, 2, 1]),
    ],
)
def test_a_split_of_several_sets_is_numbered_through(
    sets: list[NegativeSet], split: str, numbers: list[int], blocks: list[int]
) -> None:
    groups = ContrastiveGroups.of(sets, split)
    assert [groups[i].tokens.prefix[0] for i in range(len(groups))] == numbers
    assert [len(block) for block in groups.blocks] == blocks
    assert np.concatenate(groups.blocks).tolist() == list(range(len(numbers)))
    found = groups[1]
    expected = group(numbers[1])
    assert found.id == expected.id
    assert [list(c) for c in found.tokens.continuations] == [[7, 0], *(c.ids for c in expected.negatives)]
    assert list(found.reference_logps) == [-numbers[1], 0.0, -1.0, -2.0, -3.0, -4.0, -5.0]
    assert list(found.strategies) == ["an"] * 4 + ["bn"] * 2


def test_the_log_says_how_many_groups_a_split_leaves_out(
    sets: list[NegativeSet], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    GroupStore(sets, "train")
    assert [record.getMessage() for record in caplog.records] == ["split 'train': 10 of 15 groups"]


def test_the_tokens_of_a_block_are_those_of_its_packed_rows(sets: list[NegativeSet]) -> None:
    for use in (None, "an=2", "bn=1,an=3"):
        groups = ContrastiveGroups.of(sets, "train", use)
        for block in groups.blocks:
            assert groups.tokens(block).tolist() == [groups[i].tokens.packed_length for i in block]
    truths = ContrastiveGroups(GroupStore(sets, "train"))
    assert truths.tokens(truths.blocks[0]).tolist() == [truths[i].tokens.packed_length for i in truths.blocks[0]]


def test_no_more_shards_are_held_than_needed(sets: list[NegativeSet]) -> None:
    store = GroupStore(sets, "all")
    store.kept_groups = 5
    for number in (0, 5, 9, 10, 14, 0):
        shard, row = store.locate(number)
        assert shard.prompts[row][0] == number
        assert sum(len(held.ids) for held in store._cache.values()) <= 5
    store.kept_groups = 0
    store.keep(100)
    assert store.kept_groups == 100 + 3 * 4


def write_copies(path: Path, rows: int, shards: int, halves: bool = False) -> NegativeSet:
    """Shards of so many groups, with halves every second one held out; one is written, the others are copies."""
    groups = [group(n, "test" if halves and n % 2 else "train") for n in range(rows)]
    for made in groups:
        made.negatives = made.negatives[:1]
    write(path, groups, rows, "all" if halves else "train", strategies={"an": {"count": 1}})
    manifest = json.loads((path / "manifest.json").read_text())
    (record,) = manifest["shards"]
    manifest["shards"] = [{**record, "file": f"shard-{index:05d}.parquet"} for index in range(shards)]
    for one in manifest["shards"][1:]:
        shutil.copy(path / record["file"], path / one["file"])
    (path / "manifest.json").write_text(json.dumps(manifest))
    return NegativeSet(str(path))


class Counted(NegativeSet):
    """Writes down, for all processes, which shard was read for decoding."""

    log: Path

    def shard_table(self, index: int, columns: Sequence[str] | None) -> Any:
        if columns is None or "prompt_ids" in columns:
            with self.log.open("a") as file:
                file.write(f"{index}\n")
        return super().shard_table(index, columns)

    def decodes(self) -> Counter[str]:
        """How often each shard was, since the last call."""
        found = Counter(self.log.read_text().split())
        self.log.write_text("")
        return found


def counted(tmp_path: Path, *args: Any) -> Counted:
    negatives = Counted(write_copies(tmp_path / "set", *args).folder.path)
    negatives.log = tmp_path / "log"
    negatives.log.touch()
    return negatives


SHAPES = [(512, 18, False), (500, 18, False), (500, 36, True), (1500, 8, False), (3000, 4, False), (40, 220, False)]


@pytest.mark.seconds
@pytest.mark.parametrize(("rows", "shards", "halves"), SHAPES)
def test_an_epoch_decodes_each_shard_once_and_holds_a_bounded_number_of_groups(
    rows: int, shards: int, halves: bool, tmp_path: Path
) -> None:
    """Several windows of 32 steps of 64 groups."""
    negatives = counted(tmp_path, rows, shards, halves)
    groups = ContrastiveGroups.of([negatives], "train")
    block = rows // 2 if halves else rows
    assert len(groups) == block * shards
    sampler = StepSampler(groups, 64)
    bound = (2 * WINDOW_STEPS + 1) * 64 + 3 * block
    assert groups.store.kept_groups == max(4096, bound)
    for epoch in range(2):
        groups.store._cache.clear()
        sampler.set_epoch(epoch)
        for number in sampler:
            groups[number]
            assert sum(len(shard.ids) for shard in groups.store._cache.values()) <= groups.store.kept_groups
        assert negatives.decodes() == {str(index): 1 for index in range(shards)}


@pytest.mark.seconds
def test_workers_of_the_loader_decode_each_shard_once_each(tmp_path: Path) -> None:
    negatives = counted(tmp_path, 1500, 8)
    groups = ContrastiveGroups.of([negatives], "train")
    loader = DataLoader(
        groups, batch_size=60, sampler=StepSampler(groups, 60), num_workers=2, collate_fn=len,
        multiprocessing_context="fork",
    )  # fmt: skip
    assert sum(loader) == 12_000
    # The main process needs the lengths.
    assert max(negatives.decodes().values()) <= 3


def test_opening_a_set_of_one_half_reads_no_shard(tmp_path: Path) -> None:
    negatives = write(tmp_path / "set", [group(n) for n in range(6)], 3, "train")
    for file in (tmp_path / "set").glob("shard-*.parquet"):
        file.write_bytes(b"")
    for split in ("train", "all"):
        store = GroupStore([negatives], split)
        assert len(store) == 6
        with pytest.raises(UserError, match=r"shard-00001.parquet of negative set .* is damaged: its SHA-256 is"):
            store.locate(5)
    with pytest.raises(UserError, match="holds no groups of split 'test'"):
        GroupStore([negatives], "test")


@pytest.mark.seconds
def test_opening_a_set_of_both_halves_reads_the_split_and_the_first_decode_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [group(n, "test" if n % 2 else "train") for n in range(1000)]
    for made in some:
        made.response_embedding = np.random.default_rng(made.prompt_ids[0]).random(100).tolist()
    negatives = write(tmp_path / "set", some, 1000, "all")
    path = tmp_path / "set" / "shard-00000.parquet"
    row_group = pq.ParquetFile(path).metadata.row_group(0)
    columns = {row_group.column(i).path_in_schema: row_group.column(i) for i in range(row_group.num_columns)}
    content = bytearray(path.read_bytes())
    content[columns["response_embedding.list.element"].data_page_offset + 1000] ^= 1
    path.write_bytes(content)

    read: list[int] = []

    class Watched(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            read.append(len(found))
            return found

    monkeypatch.setattr(negatives.folder, "open", lambda name: Watched(path.read_bytes()))
    store = GroupStore([negatives], "test")
    assert len(store) == 500
    # pyarrow looks for the footer in the last 64 KiB.
    assert sum(read) <= 2**16 + 2 * columns["split"].total_compressed_size + 2**15 < len(content) / 3
    with pytest.raises(UserError, match=r"shard-00000.parquet of negative set .* is damaged: its SHA-256 is"):
        store.locate(0)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-100]), Path.unlink])
def test_a_shard_whose_split_cannot_be_read_is_named(damage: Any, tmp_path: Path) -> None:
    negatives = write(tmp_path / "set", [group(n, "test" if n % 2 else "train") for n in range(4)], 2, "all")
    damage(tmp_path / "set" / "shard-00001.parquet")
    with pytest.raises(UserError, match=r"shard-00001.parquet of negative set .* is damaged|set' lacks shard-00001"):
        GroupStore([negatives], "train")


def test_only_the_groups_that_count_are_held(tmp_path: Path) -> None:
    some = [group(n, "test" if n % 3 else "train") for n in range(9)]
    for made in some[::6]:
        made.negatives[3].similarity["embedding"] = 0.99
    groups = ContrastiveGroups.of([write(tmp_path / "set", some, 9, "all")], "train", "an=4", min_similarity=0.9)
    assert [groups[i].tokens.prefix[0] for i in range(len(groups))] == [0, 6]
    (shard,) = groups.store._cache.values()
    assert [len(shard.ids), len(shard.negatives.lengths)] == [2, 12]
    assert groups.tokens(groups.blocks[0]).tolist() == [groups[i].tokens.packed_length for i in range(2)]


def test_a_random_choice_is_another_each_epoch_and_the_same_again(sets: list[NegativeSet]) -> None:
    groups = ContrastiveGroups.of(sets, "train", "an=2:random,bn=1", seed=5)
    again = ContrastiveGroups.of(sets, "train", "an=2:random,bn=1", seed=5)
    other = ContrastiveGroups.of(sets, "train", "an=2:random,bn=1", seed=6)

    def drawn(of: ContrastiveGroups, number: int) -> list[int]:
        return [int(c[0]) % 100 for c in of[number].tokens.continuations[1:]]

    epochs = [[drawn(groups, i + epoch * len(groups)) for i in range(len(groups))] for epoch in range(60)]
    assert epochs[7] == [drawn(again, i + 7 * len(groups)) for i in range(len(groups))]
    assert epochs[7] != [drawn(other, i + 7 * len(groups)) for i in range(len(groups))]
    counts = Counter(c for epoch in epochs for negatives in epoch for c in negatives)
    assert counts[4] == 600
    assert counts[5] == 0  # bn: the first one
    assert all(abs(counts[c] - 300) < 60 for c in range(4))  # 600 draws of 2 of 4: 300 each, sd 12
    assert all(len(set(negatives)) == 3 for epoch in epochs for negatives in epoch)


def test_the_hardest_are_the_likeliest_per_token_under_the_reference(sets: list[NegativeSet]) -> None:
    """Group 2 in nats per token: 0 / 3, -1 / 4, -2 / 1, -3 / 2, so 0, -0.25, -2, -1.5."""
    for count, expected in ((1, [200]), (2, [200, 201]), (3, [200, 201, 203]), (4, [200, 201, 202, 203])):
        groups = ContrastiveGroups.of(sets, "train", f"an={count}:hard")
        assert [int(c[0]) for c in groups[1].tokens.continuations[1:]] == expected
        assert groups[1].reference_logps[1:] == [float(-(token % 100)) for token in expected]
        for block in groups.blocks:
            assert groups.tokens(block).tolist() == [groups[i].tokens.packed_length for i in block]


def test_the_most_similar_are_so_by_the_chosen_signal_and_within_the_bounds(sets: list[NegativeSet]) -> None:
    """Similarities of an: 0.1, 0.2, 0.3, 0.4; of bn: 0.5, 0.6."""
    groups = ContrastiveGroups.of(sets, "train", "bn=1:similar,an=2:similar")
    assert [int(c[0]) for c in groups[1].tokens.continuations[1:]] == [205, 202, 203]
    assert groups[1].strategies == ["bn", "an", "an"]
    groups = ContrastiveGroups.of(sets, "train", "an=2:similar,bn=1", max_similarity=0.35)
    assert [int(c[0]) for c in groups[1].tokens.continuations[1:]] == [201, 202]
    assert groups.tokens(groups.blocks[0]).tolist() == [groups[i].tokens.packed_length for i in groups.blocks[0]]
    with pytest.raises(UserError, match=r"--rank_by asks for 'rouge', but negative set .* holds embedding"):
        ContrastiveGroups.of(sets, "train", "an=2:similar", "rouge")


def test_the_most_diverse_are_taken_farthest_first(tmp_path: Path) -> None:
    """The first one is {1 2 3 4}; the others' distances are 2/5, 6/7, 1, 1: of the two farthest the first is next."""
    texts = [[1, 2, 3, 4], [1, 2, 3, 9, 3], [1, 5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 8, 8]]
    made = group(1)
    made.negatives = [Candidate("an", ids, "t", reference_logp=-1.0, similarity={"embedding": 0.5}) for ids in texts]
    negatives = write(tmp_path / "set", [made], 1, "train", strategies={"an": {"count": 5}})
    # Beside 0 and 3, the nearest of 1 is 2/5 away, that of 2 is 3 at 1 - 3/5, that of 4 is 3 itself: 1 is before 2.
    for count, expected in ((1, [0]), (2, [0, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4])):
        groups = ContrastiveGroups.of([negatives], "train", f"an={count}:diverse")
        assert [list(c) for c in groups[0].tokens.continuations[1:]] == [texts[place] for place in expected]
        assert groups.tokens(groups.blocks[0]).tolist() == [groups[0].tokens.packed_length]


def test_another_way_to_choose_is_refused(sets: list[NegativeSet]) -> None:
    with pytest.raises(UserError) as caught:
        ContrastiveGroups.of(sets, "train", "an=2:easy")
    assert str(caught.value) == (
        "--use 'an=2:easy': ':easy' is no way to choose. Behind a number can stand :random, :hard, :similar, :diverse, "
        "as in an=4:random."
    )


def test_only_groups_in_reach_of_the_sampler_are_kept_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = [group(n, "test" if n % 3 == 2 else "train") for n in range(9)]
    for made in some:
        made.in_support = made.prompt_ids[0] % 2 == 0
    negatives = write(tmp_path / "set", some, 4, "all")
    caplog.set_level("INFO")
    store = GroupStore([negatives], "train", in_support=True)
    assert [store.locate(i)[0].prompts[store.locate(i)[1]][0] for i in range(len(store))] == [0, 4, 6]
    assert "split 'train': --in_support: 3 of 6 groups kept\n" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    many = [group(n, "train") for n in range(11)]
    for made in many:
        made.in_support = made.prompt_ids[0] == 0
    GroupStore([write(tmp_path / "many", many, 4, "all")], "train", in_support=True)
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert warning.getMessage() == "split 'train': --in_support: 1 of 11 groups kept, few to learn from"
    for made in some:
        made.in_support = False
    with pytest.raises(UserError, match=r"--in_support: 0 of 6 groups kept\. Leave it out, or sample with --top_k 0"):
        GroupStore([write(tmp_path / "none", some, 4, "all")], "train", in_support=True)


def test_a_set_that_does_not_say_what_was_in_reach_is_refused_with_its_own_cause(tmp_path: Path) -> None:
    some = [group(n) for n in range(4)]
    for made in some[1:]:
        made.in_support = False
    an, own = {"count": 4, "top_k": 50}, {"count": 4, "origin": {"entry": "mine:AN", "source_sha256": "c" * 64}}
    bn, extend = {"count": 2}, "`python -m negatives_gen extend`"
    for name, an_or_own, more, said in (
        ("other", an, {"sampler": {"name": "small"}}, "of --sampler no ranks are computed. Leave the option out, or "
            "generate with --top_k 0, where lengths alone decide."),
        ("borrowed", {"count": 4}, {}, f"none of its strategies samples. Leave the option out, or add sampled "
            f"negatives with {extend}."),
        ("own", own, {}, "its strategies (an) do not say it. Leave the option out."),
        ("old", an, {}, f"sets of schema version 3 do not say it. Leave the option out, or {extend} the set, which "
            "finds it out."),
    ):  # fmt: skip
        negatives = write(tmp_path / name, some, 4, "all", strategies={"an": an_or_own, "bn": bn}, **more)
        if name == "old":
            write_as_schema(3, tmp_path / name)
            negatives = NegativeSet(str(tmp_path / name))
        assert len(GroupStore([negatives], "train")) == 4
        with pytest.raises(UserError) as caught:
            GroupStore([negatives], "train", in_support=True)
        assert str(caught.value) == (
            f"--in_support: negative set '{negatives.folder.path}' does not say of every group whether the sampler "
            f"could have said its ground truth: {said}"
        )


def test_bounds_pass_negatives_over_for_the_next_ones_and_are_counted(
    sets: list[NegativeSet], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    groups = ContrastiveGroups.of(sets, "train", "an=2,bn=1", min_similarity=0.2, max_similarity=0.5)
    assert [int(c[0]) for c in groups[1].tokens.continuations[1:]] == [201, 202, 204]
    assert (
        "--min_similarity 0.2 and --max_similarity 0.5 (embedding) passes over 20 of 60 negatives and leaves 0 of 10 "
        "groups without any" in caplog.text
    )
    assert groups.tokens(groups.blocks[0]).tolist() == [groups[i].tokens.packed_length for i in groups.blocks[0]]


def test_groups_without_a_negative_left_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    some = [group(n) for n in range(6)]
    for n in (1, 4):
        for candidate in some[n].negatives:
            candidate.similarity["embedding"] = 0.95
    caplog.set_level("INFO")
    negatives = write(tmp_path / "set", some, 3, "train")
    groups = ContrastiveGroups.of([negatives], "train", "an=4", max_similarity=0.9)
    assert [groups[i].tokens.prefix[0] for i in range(len(groups))] == [0, 2, 3, 5]
    assert "passes over 8 of 24 negatives and leaves 2 of 6 groups without any" in caplog.text
    with pytest.raises(UserError, match=r"leaves 6 of 6 groups without any\. Choose wider bounds"):
        ContrastiveGroups.of([negatives], "train", "an=4", min_similarity=0.99)


def test_sets_with_other_negatives_need_use(sets: list[NegativeSet], tmp_path: Path) -> None:
    fewer = write(tmp_path / "c", [group(20)], 2, strategies={"an": {"count": 2}})
    with pytest.raises(UserError, match=r"holds an=4,bn=2 per group, '.*c' an=2. Say with --use what to take of both"):
        ContrastiveGroups.of([*sets, fewer], "train")
    with pytest.raises(UserError, match=r"--use asks for an=3, but negative set '.*c' holds an=2 per group"):
        ContrastiveGroups.of([*sets, fewer], "train", "an=3")
    assert len(ContrastiveGroups.of([*sets, fewer], "train", "an=2")) == 11


def test_a_split_without_groups_is_refused(tmp_path: Path) -> None:
    negatives = write(tmp_path / "set", [group(1)], 1, "train")
    with pytest.raises(UserError, match="holds no groups of split 'test'"):
        GroupStore([negatives], "test")


@pytest.mark.parametrize(
    ("use", "shown"),
    # Sets a and b hold four an and two bn.
    [
        (None, 1.0),
        ("an=2", 1.0),
        ("an=2:random", 2 / 4),
        ("an=2:random,bn=1", 3 / 5),
        ("an=4:random,bn=1:random", 5 / 6),
    ],
)
def test_an_epoch_shows_each_negative_once_or_a_share_of_those_it_draws_from(
    sets: list[NegativeSet], use: str | None, shown: float
) -> None:
    groups = ContrastiveGroups.of(sets, "train", use)
    assert groups.shown_per_epoch == pytest.approx(shown)
    seen = Counter()  # type: ignore[var-annotated]  # of lists of ids
    epochs = 60
    for epoch in range(epochs):
        seen.update(tuple(ids) for ids in groups[epoch * len(groups)].tokens.continuations[1:])
    assert sum(seen.values()) / len(seen) == pytest.approx(epochs * shown)


def test_ground_truths_alone_show_no_negatives(sets: list[NegativeSet]) -> None:
    assert ContrastiveGroups(GroupStore(sets, "train")).shown_per_epoch is None
