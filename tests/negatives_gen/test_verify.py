"""`verify`: what it says of a good set, and that no damage passes. Real scorer, no Ray."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.command.options import make_config
from data.manifest import ShardRecord
from data.schema import Group, group_from_row, group_schema, groups_to_table
from data.storage import sha256
from negatives_gen.config import GenerateConfig
from negatives_gen.job.job import generate
from negatives_gen.verbs import checks
from negatives_gen.verbs.checks import UniqueIds, logp_bound
from negatives_gen.verbs.verify import main
from tests.support.older_schemas import write_as_schema
from tests.support.tiny import save_tiny_model
from tests.support.without_ray import without_ray

pytestmark = pytest.mark.seconds  # what most of its tests share takes seconds

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows in three shards, two of them rejected."""
    from data.sources import facts

    folder = tmp_path_factory.mktemp("verify")
    rows = [*facts.examples()[:22], {"prompt": "Empty?", "completion": ""}, facts.examples()[0]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(
            GenerateConfig,
        model=str(reference), dataset=str(folder / "rows.jsonl"), split="all", out=str(folder / "set"),
        strategies="bn=2,mn=1,tn=1", groups_per_shard=8, signals="embedding,rouge", embedder="reference",
    )  # fmt: skip
    with without_ray():
        generate(config)
    return folder / "set"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


def said(path: Path, capsys: Capture, *options: str) -> tuple[int, list[str]]:
    """Exit code and printed lines of the command."""
    capsys.readouterr()
    code = main([str(path), *options])
    out = capsys.readouterr()
    return code, (out.out + out.err).splitlines()


def seal(path: Path, shard: int = 0) -> None:
    """Give a changed shard a fitting checksum and size, so that only what it holds can be wrong."""
    manifest = json.loads((path / "manifest.json").read_text())
    record = manifest["shards"][shard]
    content = (path / record["file"]).read_bytes()
    record.update(bytes=len(content), sha256=sha256(content))
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def change(path: Path, edit: Callable[[list[Group]], object]) -> None:
    """Change the groups of the first shard."""
    file = path / "shard-00000.parquet"
    groups = [group_from_row(row) for row in pq.read_table(file).to_pylist()]
    edit(groups)
    pq.write_table(groups_to_table(groups, ["embedding", "rouge"]), file)
    seal(path)


def change_manifest(path: Path, old: str, new: str) -> None:
    text = (path / "manifest.json").read_text()
    assert text.count(old) >= 1
    (path / "manifest.json").write_text(text.replace(old, new, 1))


def test_an_undamaged_set_passes_every_check(made: Path, capsys: Capture) -> None:
    code, lines = said(made, capsys, "--sample", "5")
    assert code == 0
    assert [line.split(":")[0] for line in lines if line.startswith(("ok", "FAILED", "left out"))] == [
        f"ok       {check}"
        for check in (
            "manifest", "model", "files", "checksums", "schema", "counts", "ids", "tokens", "numbers",
            "log-probabilities", "texts",
        )
    ]  # fmt: skip
    assert "ok       counts: 24 rows read, 22 groups, the rest rejected" in lines
    assert any(line.startswith("ok       log-probabilities: 5 groups, off by ") for line in lines)


def test_a_hundred_random_flips_of_a_bit_are_all_noticed(copy: Path, capsys: Capture) -> None:
    draw = random.Random(0)
    files = [copy / f"shard-{index:05d}.parquet" for index in range(3)]
    hit = set()
    for _ in range(100):
        file = draw.choices(files, [f.stat().st_size for f in files])[0]
        before = file.read_bytes()
        place = draw.randrange(len(before))
        file.write_bytes(before[:place] + bytes([before[place] ^ 1 << draw.randrange(8)]) + before[place + 1 :])
        code, lines = said(copy, capsys)
        assert code == 1, f"byte {place} of {file.name}"
        assert any(line.startswith(f"FAILED   checksums: {file.name} has SHA-256") for line in lines)
        file.write_bytes(before)
        hit.add(file)
    assert hit == set(files)


def test_a_group_of_a_split_that_there_is_not_is_noticed(copy: Path, capsys: Capture) -> None:
    """Trainer and evaluation would leave it out without a word."""
    change(copy, lambda groups: setattr(groups[2], "split", "tra1n"))
    code, lines = said(copy, capsys)
    assert code == 1
    assert any(line.endswith("is of split 'tra1n', not of train or test") for line in lines)


def test_a_flip_in_the_rejects_is_noticed(copy: Path, capsys: Capture) -> None:
    content = bytearray((copy / "rejects.parquet").read_bytes())
    content[100] ^= 4
    (copy / "rejects.parquet").write_bytes(content)
    code, lines = said(copy, capsys)
    assert code == 1
    assert any(line.startswith("FAILED   checksums: rejects.parquet has SHA-256") for line in lines)


def test_flips_of_what_the_manifest_says_of_files_counts_and_model_are_noticed(copy: Path, capsys: Capture) -> None:
    """All of the manifest that the files, the model or other parts of it can contradict; not e.g. the seed."""
    content = (copy / "manifest.json").read_bytes()
    spans = [
        re.search(pattern, content, re.DOTALL)
        for pattern in (
            rb'"weights_sha256": "\w{64}"', rb'"tokenizer": \{.*?\}', rb'"counts": \{.*?\}\s*\}',
            rb'"rejects": \{.*?\}', rb'"file": "shard-00001.*?"seconds"', rb'"schema_version": \d+',
            rb'"signals": \[.*?\]',
        )
    ]  # fmt: skip
    places = [place for span in spans if span for place in range(*span.span())]
    assert len(places) > 900
    draw = random.Random(1)
    for place in draw.sample(places, 100):
        flipped = bytes([content[place] ^ 1 << draw.randrange(8)])
        (copy / "manifest.json").write_bytes(content[:place] + flipped + content[place + 1 :])
        code, lines = said(copy, capsys)
        assert code in (1, 2), f"{content[place - 20 : place + 5]!r} with {flipped!r}: {lines}"


def double(groups: list[Group]) -> None:
    groups[1].id = groups[0].id


def hollow(groups: list[Group]) -> None:
    groups[2].negatives[0].ids = []


def endless(groups: list[Group]) -> None:
    groups[3].response_ids[-1] = 7


def unknown_id(groups: list[Group]) -> None:
    groups[1].response_ids[0] = 1_000_000


def too_long(groups: list[Group]) -> None:
    groups[1].prompt_ids = [7] * 200


def no_prompt(groups: list[Group]) -> None:
    groups[1].prompt = None  # type: ignore[assignment]  # what a shard may not hold


def not_a_number(groups: list[Group]) -> None:
    groups[0].negatives[1].similarity["rouge"] = float("nan")


def unscored(groups: list[Group]) -> None:
    groups[0].reference_logp = None


def stretched(groups: list[Group]) -> None:
    groups[1].response_embedding = [2 * x for x in groups[1].response_embedding or []]


def one_less(groups: list[Group]) -> None:
    groups[0].negatives.pop()


def renamed(groups: list[Group]) -> None:
    groups[0].negatives[0].strategy = "mn"


def lost(groups: list[Group]) -> None:
    groups.pop()


def other_logp(groups: list[Group]) -> None:
    for group in groups:
        group.negatives[0].reference_logp = (group.negatives[0].reference_logp or 0) - 0.5


def other_text(groups: list[Group]) -> None:
    for group in groups:
        group.negatives[0].text = "something else"


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (double, r"ids: id [0-9a-f]{32} stands there again"),
        (hollow, r"tokens: shard-00000.parquet: an empty negative in group [0-9a-f]{32}"),
        (endless, r"tokens: .*the ground truth of group [0-9a-f]{32} ends with 7, not with EOS \(\d+\)"),
        (unknown_id, r"tokens: shard-00000.parquet: response_ids holds the id 1000000, the vocabulary has \d+"),
        (
            too_long,
            r"tokens: shard-00000.parquet: a sequence of group [0-9a-f]{32} has 2\d\d tokens, the model's context 128",
        ),
        (no_prompt, r"schema: shard-00000.parquet: 1 of prompt are null"),
        (not_a_number, r"numbers: .*similarity 'rouge' of a negative in group [0-9a-f]{32} is nan"),
        (unscored, r"numbers: .*reference_logp of the ground truth in group [0-9a-f]{32} is nan"),
        (stretched, r"numbers: .*the embedding of group [0-9a-f]{32} has length 2.0000, not 1"),
        (one_less, r"counts: .*has the negatives {'bn': 2, 'mn': 1}, the manifest says {'bn': 2, 'mn': 1, 'tn': 1}"),
        (renamed, r"counts: .*has the negatives {'mn': 2, 'bn': 1, 'tn': 1}"),
        (lost, r"counts: shard-00000.parquet: 7 rows, the manifest says 8"),
        (other_logp, r"log-probabilities: group [0-9a-f]{32}: -[\d.]+ stored, -[\d.]+ computed for \d+ tokens"),
        (other_text, r"texts: group [0-9a-f]{32}: ids that do not say 'something else'"),
    ],
)
def test_each_fault_of_a_shard_is_named(
    copy: Path, capsys: Capture, edit: Callable[[list[Group]], object], line: str
) -> None:
    change(copy, edit)
    code, lines = said(copy, capsys)
    assert code == 1
    assert any(re.match(f"FAILED   {line}", found) for found in lines), lines


@pytest.mark.parametrize("found", [True, False], ids=["with the model", "without it"])
def test_a_sequence_that_the_model_does_not_take_is_a_finding_and_no_trace(
    found: bool, copy: Path, capsys: Capture
) -> None:
    """Consistent in all else, its counts of tokens too. Without the model the manifest says its context."""
    change(copy, too_long)
    manifest = json.loads((copy / "manifest.json").read_text())
    tokens = pq.read_table(copy / "shard-00000.parquet", columns=["prompt_ids"])["prompt_ids"]
    manifest["shards"][0]["tokens"]["prompt"] = sum(map(len, tokens.to_pylist()))
    manifest["job"]["model"]["name"] = manifest["job"]["model"]["name"] if found else "/nowhere"
    (copy / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    code, lines = said(copy, capsys)
    assert code == 1
    assert [line.split(":")[0] for line in lines if line.startswith("FAILED")] == ["FAILED   tokens"]


def test_verify_names_another_schema_version(copy: Path, capsys: Capture) -> None:
    file = copy / "shard-00000.parquet"
    table = pq.read_table(file)
    place = table.column_names.index("reference_logp")
    pq.write_table(table.set_column(place, "reference_logp", table["reference_logp"].cast(pa.float64())), file)
    seal(copy)
    code, lines = said(copy, capsys)
    assert code == 1
    what = "shard-00000.parquet: column reference_logp is double, the schema says float"
    assert f"FAILED   schema: {what}" in lines
    assert table.schema.equals(group_schema(["embedding", "rouge"]))


def test_what_lengths_and_settings_contradict_of_the_samplers_reach_is_named() -> None:
    """Five tokens behind three, of which an reaches five and then four; which tokens are in the top k is not known."""
    groups = [
        Group(f"{n}", "p", "r", [1, 2, 3], [5] * 4 + [0], in_support=said) for n, said in enumerate((True, False, None))
    ]
    table = groups_to_table(groups, ["embedding"])

    def said(**strategies: dict[str, int]) -> list[str]:
        found = checks.support_problems(table, "file", {"data": {"context": 8}, "strategies": strategies})
        return [problem.removeprefix("file: in_support of group ") for problem in found]

    assert said(an={"count": 1, "top_k": 50, "max_new_tokens": 5}) == []
    assert said(an={"count": 1, "top_k": 0, "max_new_tokens": 5}) == [
        "1 is False, by the settings it is True", "2 is None, by the settings it is True",
    ]  # fmt: skip
    assert said(an={"count": 1, "top_k": 50, "max_new_tokens": 4}) == [
        "0 is True, by the settings it is False", "2 is None, by the settings it is False",
    ]  # fmt: skip
    assert said(tn={"count": 1}) == ["0 is True, by the settings it is None", "1 is False, by the settings it is None"]
    assert said(an={"count": 1, "top_k": 50}) == [
        "file: settings of a strategy that samples are damaged (KeyError: 'max_new_tokens')"
    ]
    assert said(an={"count": 1}, mine={"count": 1}) == []  # one from outside


def test_a_set_of_schema_3_passes_every_check(copy: Path, capsys: Capture) -> None:
    write_as_schema(3, copy)
    code, lines = said(copy, capsys, "--sample", "2")
    assert code == 0
    assert any(line.startswith("ok       manifest: 3 shards, schema version 3: 22 groups from ") for line in lines)
    assert "ok       schema: signals embedding, rouge" in lines


def test_foreign_and_missing_files_are_named(copy: Path, capsys: Capture) -> None:
    for name in ("shard-00003.parquet", ".tmp-x", "README.md", ".gitattributes"):
        (copy / name).write_bytes(b"")
    (copy / "shard-00002.parquet").unlink()
    code, lines = said(copy, capsys)
    assert code == 1
    assert [line for line in lines if line.startswith("FAILED")] == [
        "FAILED   files: .tmp-x is no file of the set",
        "FAILED   files: shard-00003.parquet is no file of the set",
        "FAILED   checksums: shard-00002.parquet is missing",
    ]


def test_a_manifest_that_contradicts_itself_is_named(copy: Path, capsys: Capture) -> None:
    change_manifest(copy, '"rows_written": 22', '"rows_written": 21')
    code, lines = said(copy, capsys)
    assert code == 1
    assert lines[:2] == [
        "FAILED   manifest: rows_written is 21, the shards' sum 22",
        "FAILED   manifest: rows read are not rows written + rows rejected",
    ]
    assert not any(line.startswith("ok") for line in lines)


def test_verify_refuses_a_model_that_is_not_the_reference(copy: Path, capsys: Capture, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)
    code, lines = said(copy, capsys, "--model", str(other))
    assert code == 2
    assert re.search(
        r"error: --model is not the set's reference model: '.*other' has weights [0-9a-f]{16}, ", lines[-1]
    )


def test_without_the_model_the_spot_check_is_left_out_and_said(copy: Path, capsys: Capture, reference: Path) -> None:
    change_manifest(copy, json.dumps(str(reference)), '"/nowhere/model"')
    code, lines = said(copy, capsys)
    assert code == 0
    assert any(line.startswith("left out log-probabilities: model '/nowhere/model' does not exist") for line in lines)
    code, lines = said(copy, capsys, "--model", str(reference))
    assert code == 0
    assert any(line.startswith("ok       log-probabilities: 16 groups") for line in lines)


def test_a_directory_that_is_no_set_is_refused(tmp_path: Path, capsys: Capture) -> None:
    code, lines = said(tmp_path, capsys)
    assert (code, len(lines)) == (2, 1)
    assert "so it is no negative set" in lines[0]


def test_repeated_ids_are_found_across_shards_in_sixteen_bytes_each() -> None:
    unique, ids = UniqueIds(), [f"{n:032x}" for n in (0, 5, 1 << 127, 7)]
    assert unique.add(ids[:2], "a") == []
    assert unique.add([*ids[2:], ids[1], "x"], "b") == ["b: id 'x' is not 32 hex digits"]
    assert len(unique) == 5
    assert unique.repeated() == [f"id {ids[1]} stands there again"]


def test_a_shard_of_rejects_only_is_no_fault() -> None:
    signals, empty = ["embedding", "rouge"], group_schema(["embedding", "rouge"]).empty_table()
    tokens = {"prompt": 0, "response": 0, "negatives": 0}
    record = ShardRecord("shard-00000.parquet", 4, 0, 4, 0, 1, "", tokens, {}, "packed")
    assert checks.schema_problems(empty, signals) == []
    assert checks.count_problems(empty, record, {"an": {"count": 2}}) == []
    assert checks.token_problems(empty, record.file, [0]) == []
    assert checks.number_problems(empty, record.file, signals) == []


def test_an_embedding_that_is_missing_is_named_and_the_others_are_not() -> None:
    embeddings = [[0.6, 0.8], None, [1.0, 0.0, 0.0], [], [float("nan")]]
    groups = [
        Group(str(i), "p", "r", [1], [0], reference_logp=-1.0, response_embedding=embedding)
        for i, embedding in enumerate(embeddings)
    ]
    table = groups_to_table(groups, ["embedding"])
    assert checks.number_problems(table, "f", ["embedding"]) == [
        "f: the embedding of group 1 has length 0.0000, not 1",
        "f: the embedding of group 3 has length 0.0000, not 1",
        "f: the embedding of group 4 has length inf, not 1",
    ]


def test_the_bound_of_a_log_probability() -> None:
    assert logp_bound(0) == pytest.approx(0.01)
    assert logp_bound(300) == pytest.approx(0.04)
