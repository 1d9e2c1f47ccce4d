"""data/manifest.py: what tells two jobs apart, where a set was made, and which files it names."""

import json
import tomllib
from pathlib import Path

import pyarrow as pa
import pytest

from data.manifest import MISSING, environment, first_difference, said_of_difference
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from tests.support.commands import ROOT
from tests.support.written import JOB, SIGNALS, all_files, refusal, write_set


def test_the_environment_names_package_versions_and_the_commit_of_this_checkout():
    found = environment()
    assert found["packages"]["pyarrow"] == pa.__version__
    assert len(found["git_commit"]) == 40
    assert found["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_first_difference_walks_nested_settings():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": [1]}}, {"a": {"b": [2]}}) == ("a.b", [1], [2])
    assert first_difference({}, {"new": 3}) == ("new", MISSING, 3)
    assert first_difference({"a": {"b": 1, "name": 2}}, {"a": {"b": 1}}, ignore=("a.name",)) is None


def test_what_differs_is_said_in_words_and_names_first_and_hashes_last():
    theirs = {"model": {"name": "runs/a", "weights_sha256": "1" * 64, "config_sha256": "2"}, "seed": 0, "limit": None}
    ours = {"model": {"name": "runs/b", "weights_sha256": "3" * 64, "config_sha256": "2"}, "seed": 1, "limit": None}
    ignore = ["model.name"]
    assert said_of_difference(theirs, ours, ignore=ignore) == (
        "its model.name is 'runs/a', this job's is 'runs/b'; its seed is 0, this job's is 1; also model.weights_sha256"
    )
    only_named = {**theirs, "model": {**theirs["model"], "name": "runs/b"}}
    assert said_of_difference(theirs, only_named, ignore=ignore) is None
    changed = {**theirs, "model": {**theirs["model"], "config_sha256": "4"}}
    assert said_of_difference(theirs, changed, ignore=ignore) == "its model.config_sha256 is '2', this job's is '4'"
    many = said_of_difference({}, dict.fromkeys("abcde", 1))
    assert many is not None
    assert many.startswith("its a is ")
    assert many.endswith("; also d, e")


def test_first_difference_tells_null_from_missing_and_ignores_whole_paths_only():
    assert first_difference({"a": {"b": None}}, {"a": {}}) == ("a.b", None, MISSING)
    assert f"{MISSING!r}" == "(missing)"
    assert first_difference({"x": {"name": 1}}, {"x": {"name": 2}}, ignore=("name", "a.name")) == ("x.name", 1, 2)


@pytest.mark.parametrize(
    ("part", "file", "said"),
    [
        (0, "a\0b", r'shards[0].file is "a\u0000b", not shard-00000.parquet'),
        (0, "a" * 5000, f'shards[0].file is "{"a" * 60}", not shard-00000.parquet'),
        (0, "shard-00001.parquet", 'shards[0].file is "shard-00001.parquet", not shard-00000.parquet'),
        (1, "../set/shard-00001.parquet", 'shards[1].file is "../set/shard-00001.parquet", not shard-00001.parquet'),
        ("rejects", "a\0b", r'rejects.file is "a\u0000b", not rejects.parquet'),
        ("rejects", "", 'rejects.file is "", not rejects.parquet'),
        ("rejects", "shard-00001.parquet", 'rejects.file is "shard-00001.parquet", not rejects.parquet'),
    ],
    ids=["NUL", "too long", "another shard", "path", "NUL as rejects", "no rejects", "shard as rejects"],
)
def test_a_manifest_that_names_another_file_is_damaged_for_who_reads_and_who_writes(
    part: int | str, file: str, said: str, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    write_set(str(out))
    manifest = json.loads((out / "manifest.json").read_text())
    (manifest["rejects"] if part == "rejects" else manifest["shards"][part])["file"] = file
    (out / "manifest.json").write_text(json.dumps(manifest))
    before = all_files(out)
    expected = f"the manifest of '{out}' is damaged ({said}). Restore it or generate again."
    assert refusal(lambda: NegativeSet(str(out))) == expected
    assert refusal(NegativeSetWriter(str(out), JOB, SIGNALS).begin) == expected
    assert all_files(out) == before


def test_the_manifest_says_which_strategies_have_values_of_a_signal(tmp_path: Path) -> None:
    writer = NegativeSetWriter(
        str(tmp_path), {**JOB, "signals": {"given": {"only_of": ["given", "bn"]}, "rouge": {}}}, ["rouge", "given"]
    )
    writer.begin()
    writer.finish(0)
    manifest = NegativeSet(str(tmp_path)).manifest
    assert manifest.only_of == {"given": ("given", "bn")}
    assert manifest.without_values("given", ["an", "bn", "given", "tn"]) == ["an", "tn"]
    assert manifest.without_values("rouge", ["an", "bn"]) == []
    file = tmp_path / "manifest.json"
    for wrong in ("[]", "7", '["an", 1]'):
        written = json.loads(file.read_text())
        written["job"]["signals"]["given"]["only_of"] = json.loads(wrong)
        file.write_text(json.dumps(written))
        assert "job.signals.given.only_of" in refusal(lambda: NegativeSet(str(tmp_path)))
