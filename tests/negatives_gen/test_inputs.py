"""Staging: which examples make up which shard, read once, and read again in a worker as they were."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.schema import Group, Reject
from data.set_directory import SetDirectory
from data.set_writer import NegativeSetWriter
from data.sources.examples import Example, fingerprint, open_source
from data.storage import Folder
from negatives_gen.job.inputs import ParentShards, Shard, StagedShards, stage_inputs
from tests.support.owners import die
from tests.support.read_examples import load_examples
from tests.support.written import job_of

EXAMPLES = [
    Example("a", "Who?", " Ada."),
    Example("b", "Where?", " Aska.", "test"),
    Example("c", "Half \ud83d", " no.", problem=("prompt is not valid Unicode", "surrogates not allowed")),
    Example("d", None, 3, problem=("prompt is not text", "it is NoneType")),
    Example("e", "Line\u2028break\n", " \u05e9 \x00."),
]


class ReadOnce:
    """Examples that can be read once, like a stream."""

    def __init__(self, examples: list[Example]):
        self.left = examples

    def __iter__(self) -> Iterator[Example]:
        while self.left:
            yield self.left.pop(0)


def job_in(path: Path, **job: Any) -> SetDirectory:
    return SetDirectory(str(path), job, [])


def staged(folder: Folder, index: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.read(f"_job/inputs/{index:05d}.jsonl").decode().split("\n")]


def test_what_a_row_says_besides_is_staged_too(tmp_path: Path) -> None:
    job, besides = job_in(tmp_path), [{"name": "ann", "tags": [1, None]}, {}]
    chat = [{"role": "user", "content": "Who?"}], [{"role": "assistant", "content": "Ada."}]
    stage_inputs(job, [Example("a", *chat, besides=besides)], 2)
    assert staged(job.folder, 0)[0]["besides"] == besides


@pytest.mark.parametrize("of_chat", [False, True])
def test_a_row_that_says_much_besides_is_staged_and_read_again(tmp_path: Path, reference: Path, of_chat: bool) -> None:
    """A field nested as deep as JSON may be, and a name of a megabyte that UTF-8 cannot hold, which is a reason."""
    deep: Any = "x"
    for _ in range(60):
        deep = [deep]
    name = "y\ud800" + "z" * 1_000_000
    row = {"prompt": "Who?", "completion": "Ada.", "tools": deep}
    if of_chat:
        asked, said = {"role": "user", "content": "Who?", name: deep}, {"role": "assistant", "content": "Ada."}
        row = {"prompt": [asked], "completion": [said]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (example,) = load_examples(str(tmp_path / "rows.jsonl"), "prompt-completion", "all")
    job = job_in(tmp_path / "job")
    stage_inputs(job, [example], 2)
    (found,) = StagedShards(job.folder, "prompt-completion", str(reference), 128)._examples(0)
    assert found.besides is not None
    ((kept, _),) = found.besides[0].items()
    assert kept == ("y?" + "z" * 998 if of_chat else "tools")
    assert len((tmp_path / "job/_job/inputs/00000.jsonl").read_bytes()) < 3000


def test_a_shard_holds_consecutive_examples_whether_usable_or_not(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    folder = job.folder
    done = stage_inputs(job, EXAMPLES, 2)
    assert (done.examples, done.shards, done.examples_sha256) == (5, 3, fingerprint(EXAMPLES))
    rows = [[row["id"] for row in staged(folder, index)] for index in range(3)]
    assert rows == [["a", "b"], ["c", "d"], ["e"]]
    assert staged(folder, 0)[1] == {
        "id": "b",
        "prompt": "Where?",
        "response": " Aska.",
        "split": "test",
        "problem": None,
        "query": None,
    }
    assert staged(folder, 1)[0]["prompt"] == "Half \ud83d"
    assert staged(folder, 2)[0]["prompt"] == "Line\u2028break\n"


@pytest.mark.parametrize(
    ("rows", "size", "sizes"), [(8, 4, [4, 4]), (9, 4, [4, 3, 2]), (11, 4, [4, 4, 3]), (5, 8, [5]), (13, 12, [7, 6])]
)
def test_the_last_two_shards_share_what_is_left(tmp_path: Path, rows: int, size: int, sizes: list[int]) -> None:
    job = job_in(tmp_path)
    folder = job.folder
    done = stage_inputs(job, [Example(str(i), "p", "r") for i in range(rows)], size)
    ids = [[row["id"] for row in staged(folder, index)] for index in range(done.shards)]
    assert [len(part) for part in ids] == sizes
    assert [one for part in ids for one in part] == [str(i) for i in range(rows)]


def test_staged_inputs_are_not_read_again_but_half_staged_ones_are(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    folder = job.folder
    first = stage_inputs(job, ReadOnce(list(EXAMPLES)), 2)
    assert stage_inputs(job, ReadOnce([]), 2) == first
    folder.remove("_job/inputs.json")  # as after a kill while the second shard was being staged
    folder.remove("_job/inputs/00002.jsonl")
    assert stage_inputs(job, ReadOnce(list(EXAMPLES)), 2) == first
    assert [row["id"] for row in staged(folder, 2)] == ["e"]


@pytest.mark.parametrize("damage", [b"", b"{}", b"null", b"\xff", None])
@pytest.mark.parametrize("name", ["inputs.json", "inputs/00001.jsonl"])
def test_staged_inputs_that_are_damaged_are_staged_again(tmp_path: Path, name: str, damage: bytes | None) -> None:
    job = job_in(tmp_path)
    folder = job.folder
    first = stage_inputs(job, EXAMPLES, 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if damage is None:
        folder.remove(f"_job/{name}")
    else:
        folder.write(f"_job/{name}", damage)
    assert stage_inputs(job, ReadOnce(list(EXAMPLES)), 2) == first
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_text_that_was_changed_where_it_is_staged_is_staged_again(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    folder = job.folder
    stage_inputs(job, EXAMPLES, 2)
    content = folder.read("_job/inputs/00000.jsonl")
    folder.write("_job/inputs/00000.jsonl", content.replace(b"Ada", b"Bob"))
    stage_inputs(job, ReadOnce(list(EXAMPLES)), 2)
    assert folder.read("_job/inputs/00000.jsonl") == content


def test_a_stream_that_has_other_rows_by_now_is_refused_if_shards_are_finished(tmp_path: Path) -> None:
    writer = NegativeSetWriter(str(tmp_path), {}, ["embedding"])
    writer.begin()
    stage_inputs(writer, EXAMPLES[:3], 2)
    rejects = [Reject(example.id, "duplicate", "", "p") for example in EXAMPLES[:2]]
    writer.write_shard(0, [], rejects, seconds={}, layout="packed")
    writer.folder.write("_job/inputs.json", b"")
    assert stage_inputs(writer, ReadOnce(EXAMPLES[:3]), 2).shards == 2
    writer.folder.write("_job/inputs.json", b"")
    with pytest.raises(UserError, match=r"the data set has changed since shard-00000\.parquet was made of it"):
        stage_inputs(writer, ReadOnce(EXAMPLES[2:]), 2)


def test_a_worker_that_finds_no_examples_says_so(reference: Path, tmp_path: Path) -> None:
    job = job_in(tmp_path)
    folder = job.folder
    stage_inputs(job, open_source("facts", "prompt-completion", "train", 9), 3)
    folder.write("_job/inputs/00001.jsonl", b"")
    folder.remove("_job/inputs/00000.jsonl")
    content = folder.read("_job/inputs/00002.jsonl")
    folder.write("_job/inputs/00002.jsonl", content.replace(b"in", b"on"))  # examples still, but others
    shards = StagedShards(folder, "prompt-completion", str(reference), 128)
    for index in range(3):
        with pytest.raises(UserError, match=rf"inputs/0000{index}\.jsonl' is missing or damaged"):
            shards.load(index)


def test_what_another_job_has_staged_is_not_taken(tmp_path: Path) -> None:
    """That job's job.json was lost with the power, or a kill came while the job gave the directory up."""
    stage_inputs(job_in(tmp_path, seed=1), EXAMPLES[:2], 2)
    done = stage_inputs(job_in(tmp_path, seed=2), ReadOnce(EXAMPLES[3:]), 2)
    assert done.examples_sha256 == fingerprint(EXAMPLES[3:])
    assert [row["id"] for row in staged(Folder(str(tmp_path)), 0)] == ["d", "e"]


def test_a_straggler_stages_nothing_over_what_its_successor_has_staged(tmp_path: Path) -> None:
    straggler, successor = job_in(tmp_path), job_in(tmp_path)
    straggler.begin()

    def examples() -> Iterator[Example]:
        yield EXAMPLES[0]
        die(straggler.claim)
        successor.begin()
        stage_inputs(successor, EXAMPLES[:2], 1)
        yield EXAMPLES[4]

    with pytest.raises(UserError, match="another run has taken over"):
        stage_inputs(straggler, examples(), 1)
    assert [[row["id"] for row in staged(successor.folder, index)] for index in range(2)] == [["a"], ["b"]]
    successor.end()


def test_a_data_set_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows in this split"):
        stage_inputs(job_in(tmp_path), [], 2)


def test_a_worker_tokenises_its_shard(reference: Path, tmp_path: Path) -> None:
    source = open_source("facts", "prompt-completion", "train", 7)
    job = job_in(tmp_path)
    folder = job.folder
    stage_inputs(job, source, 4)
    shards = pickle.loads(pickle.dumps(StagedShards(folder, "prompt-completion", str(reference), 128)))
    loaded = [shards.load(index) for index in range(2)]
    assert [g.id for shard in loaded for g in shard.groups] == [example.id for example in source]
    assert [len(shard.groups) for shard in loaded] == [4, 3]
    for shard in loaded:
        assert [g.id for g in shard.pool] == sorted(g.id for g in shard.groups)


def test_a_group_that_a_strategy_gives_up_stays_in_the_pool_and_its_reject_holds_the_row() -> None:
    groups = [Group(name, f"p{name}", "r", [1], [2, 0], "test", query=name) for name in "ab"]
    shard = Shard(list(groups), list(groups), [])
    shard.set_aside("tn", {"b": "0 of 1"})
    assert [g.id for g in shard.groups] == ["a"]
    assert [g.id for g in shard.pool] == ["a", "b"]
    assert shard.rejects == [
        Reject("b", "too few tn negatives", "0 of 1", "pb", "tn", "r", "test", [1], [2, 0], query="b")
    ]


def test_a_shard_of_a_finished_set_comes_back_with_what_was_set_aside(tmp_path: Path) -> None:
    writer = NegativeSetWriter(str(tmp_path), job_of(an=1), ["embedding"])
    writer.begin()
    aside = Reject("b", "too few an negatives", "0 of 1", "pb", "an", "r", "train", [1], [2, 0])
    unusable = Reject("c", "empty response", "", "pc")
    rows = [([Group("d", "p", "r", [1], [2, 0])], [unusable]), ([Group("z", "p", "r", [1], [2, 0])], [aside])]
    for index, (groups, rejects) in enumerate(rows):
        writer.write_shard(index, groups, rejects, seconds={}, layout="packed")
    writer.finish(2)
    source = pickle.loads(pickle.dumps(ParentShards(str(tmp_path))))
    first, second = source.load(0), source.load(1)
    assert ([g.id for g in first.pool], first.rejects) == (["d"], [unusable])
    assert ([g.id for g in second.groups], second.rejects) == (["z"], [aside])
    assert [(g.id, g.prompt_ids, g.response_ids) for g in second.pool] == [("b", [1], [2, 0]), ("z", [1], [2, 0])]
