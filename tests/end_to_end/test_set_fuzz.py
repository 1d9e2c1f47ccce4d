"""A set that somebody edited: whatever is changed in its manifest or in a shard ends as a finding or one line."""

import copy
import json
import random
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.command.errors import UserError
from data.schema import group_schema
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from data.storage import sha256
from negatives_gen.verbs.extend import main as extend
from negatives_gen.verbs.inspect import main as inspect
from negatives_gen.verbs.verify import main as verify
from tests.support.strange import edited
from tests.support.written import JOB, SHARDS, SIGNALS, write_part
from trainer.groups.choice import Choice
from trainer.groups.dataset import Collator, ContrastiveGroups
from trainer.groups.store import GroupStore

# Edits, and the seed of their draw.
FEW, MANY = pytest.param(60, 0, id="few"), pytest.param(2000, 1, id="many", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in which verify finds nothing but the embeddings' length; its model is nowhere."""
    job = {
        **JOB,
        "model": {**JOB["model"], "name": "/nowhere/model"},
        "tokenizer": {"sha256": "b" * 64, "eos_token_id": 0, "chat_template_sha256": None},
        "data": {"examples": None, "examples_sha256": None, "split": "all", "context": 64},
        "signals": {name: {} for name in SIGNALS},
        "engine": {},
    }
    path = tmp_path_factory.mktemp("fuzz") / "set"
    writer = NegativeSetWriter(str(path), job, SIGNALS)
    assert writer.begin()
    for index in range(len(SHARDS)):
        write_part(writer, index)
    writer.finish(len(SHARDS))
    return path


@pytest.fixture
def copied(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Path(shutil.copytree(made, tmp_path / "set"))


def read_as_a_trainer_does(path: Path) -> None:
    """Opens, chooses and lays out every group."""
    negatives = NegativeSet(str(path))
    negatives.compute_with(100)
    negatives.check_tokenizer("b" * 64, "m")
    negatives.check_reference("a" * 64, "m")
    for split in ("all", "train"):
        groups = ContrastiveGroups(GroupStore([negatives], split), Choice.of([negatives]))
        for block in groups.blocks:
            groups.tokens(block)
        Collator("packed", 1024, groups.strategies)([groups[i] for i in range(len(groups))])


def ends_well(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Verify says something in whole lines, and who reads the set gets it or an error of one line."""
    capsys.readouterr()
    assert verify([str(path)]) in (1, 2)
    said = capsys.readouterr()
    assert "FAILED" in said.out or said.err.count("\n") == 1
    assert "\x1b" not in said.out + said.err
    assert inspect([str(path)]) in (0, 2)
    assert "\x1b" not in "".join(capsys.readouterr())
    read_or_refused(path)


def read_or_refused(path: Path) -> None:
    for read in (
        lambda: list(NegativeSet(str(path)).groups()), lambda: read_as_a_trainer_does(path),
        lambda: NegativeSet(str(path)).rejects(),
    ):  # fmt: skip
        refusals = []
        try:
            read()
        except UserError as error:
            refusals.append(str(error))
        assert not any("\n" in refusal for refusal in refusals)


@pytest.mark.seconds
@pytest.mark.parametrize(("edits", "seed"), [FEW, MANY])
def test_every_edit_of_a_manifest_is_a_finding_or_one_line(
    copied: Path, capsys: pytest.CaptureFixture[str], edits: int, seed: int
) -> None:
    file, draw = copied / "manifest.json", random.Random(seed)
    good = file.read_bytes()
    for _ in range(edits):
        changed = edited(json.loads(good), draw)
        file.write_text(json.dumps(changed, indent=2) + "\n")
        ends_well(copied, capsys)
    for content in (b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, good[:-40], b"9" * 5000, b"null"):
        file.write_bytes(content)
        ends_well(copied, capsys)


def test_a_job_that_says_too_little_is_not_extended(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = json.loads((copied / "manifest.json").read_text())
    for key in ("seed", "engine", "data", "signals"):
        job = {name: value for name, value in good["job"].items() if name != key}
        (copied / "manifest.json").write_text(json.dumps({**good, "job": job}))
        assert extend([str(copied), "--out", str(copied.parent / "new"), "--signals", "bleu"]) == 2
        assert f"job.{key} is missing" in capsys.readouterr().err
    assert not (copied.parent / "new").exists()


def reseal(path: Path, content: bytes) -> None:
    """Put another first shard into the set, with a checksum that fits."""
    (path / "shard-00000.parquet").write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["shards"][0].update(bytes=len(content), sha256=sha256(content))
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def written(table: pa.Table) -> bytes:
    buffer = BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def damaged_rows(rows: list[dict[str, Any]], draw: random.Random) -> list[dict[str, Any]]:
    """A copy of a shard's rows with one value that no set has."""
    rows = copy.deepcopy(rows)
    row = draw.choice(rows)
    inner = draw.choice([row, *row["negatives"]])
    key = draw.choice(list(inner))
    values: dict[type, list[Any]] = {
        list: [None, [], [None], [-1], [2**31 - 1]] if key.endswith("ids") else [None, [], [None], [float("nan")]],
        str: [None, "", "\x1b[2J", "x" * 5000],
        float: [None, float("nan"), float("inf"), 1e30],
        int: [None, -1],
        bool: [None, False],
        dict: [None, {}, {"embedding": None, "rouge": 0.5}, {"embedding": float("nan"), "rouge": 0.5}],
        type(None): [0 if key == "seed" else -0.5 if "logp" in key else []],
    }
    if key == "negatives":
        inner[key] = draw.choice([None, [], [None], [*inner[key], None], inner[key] * 3, inner[key][:1]])
    elif key in ("finish_reason", "source_id", "messages") and inner[key] is None:
        inner[key] = [None] if key == "messages" else ""
    else:
        inner[key] = draw.choice(values[type(inner[key])])
    return rows


@pytest.mark.seconds
@pytest.mark.parametrize(("edits", "seed"), [FEW, MANY])
def test_every_edit_of_a_shard_is_a_finding_or_one_line(
    copied: Path, capsys: pytest.CaptureFixture[str], edits: int, seed: int
) -> None:
    file, draw = copied / "shard-00000.parquet", random.Random(seed)
    rows, schema = pq.read_table(file).to_pylist(), group_schema(SIGNALS)
    for _ in range(edits):
        reseal(copied, written(pa.Table.from_pylist(damaged_rows(rows, draw), schema=schema)))
        ends_well(copied, capsys)


@pytest.mark.seconds
def test_unexpected_columns_of_a_shard_are_findings(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(copied / "shard-00000.parquet")
    nothing = pa.nulls(table.num_rows)
    for name in table.column_names:
        reseal(copied, written(table.drop_columns([name])))
        ends_well(copied, capsys)
        place = table.column_names.index(name)
        reseal(copied, written(table.set_column(place, name, nothing)))
        ends_well(copied, capsys)
    for other in (
        table.append_column("extra", nothing), table.append_column("id", table["id"]), table.slice(0, 0),
        pa.concat_tables([table, table]), table.select(table.column_names[::-1]), pa.table({}),
    ):  # fmt: skip
        reseal(copied, written(other))
        ends_well(copied, capsys)


@pytest.mark.seconds
def test_a_file_that_is_damaged_under_a_fitting_checksum_is_a_finding(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, draw = (copied / "shard-00000.parquet").read_bytes(), random.Random(2)
    for length in (0, 4, 8, len(good) // 2, len(good) - 1):
        reseal(copied, good[:length])
        ends_well(copied, capsys)
    text = good.index(b"response\n")
    reseal(copied, good[:text] + b"\xff\xfe" + good[text + 2 :])
    ends_well(copied, capsys)
    for _ in range(25):
        place = draw.randrange(4, len(good))
        reseal(copied, good[:place] + bytes([draw.randrange(256)]) + good[place + 1 :])
        verify([str(copied)])
        read_or_refused(copied)


def test_a_shard_of_which_no_row_is_drawn_does_not_stop_verify(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty take has the null type."""
    assert verify([str(copied), "--sample", "1"]) == 1  # of a job that no model made
    assert "FAILED   schema" not in capsys.readouterr().out
