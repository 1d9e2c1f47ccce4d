"""The job without Ray: what is claimed, refused, counted and said. Real scorer, stub engine."""

import errno
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from data.command.errors import UserError
from data.command.options import make_config
from data.manifest import Manifest
from data.shards import NegativeSet
from negatives_gen.__main__ import main
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from tests.support.stubs import EngineStub, ScorerStub, signals_stub
from tests.support.without_ray import without_ray

pytestmark = pytest.mark.seconds


def config(reference: Path, out: Path | str, **options: Any) -> GenerateConfig:
    defaults = {"dataset": "facts", "limit": 20, "strategies": "an=2,bn=1,mn=1,tn=1", "groups_per_shard": 8}
    if "embedding" in options.get("signals", "embedding"):
        defaults["embedder"] = "reference"
    return make_config(GenerateConfig, **{"model": str(reference), "out": str(out), **defaults, **options})


def make(reference: Path, out: Path | str, **options: Any) -> Manifest:
    with without_ray():
        return generate(config(reference, out, **options), Components(engine=EngineStub))


def test_negatives_of_all_strategies_lie_in_one_order_with_all_that_is_known_of_them(
    reference: Path, tmp_path: Path
) -> None:
    manifest = make(reference, tmp_path / "set", signals="embedding,rouge")
    assert manifest.signals == ["embedding", "rouge"]
    assert list(manifest.job["strategies"]) == ["an", "bn", "mn", "tn"]
    for group in NegativeSet(str(tmp_path / "set")).groups():
        assert [c.strategy for c in group.negatives] == ["an", "an", "bn", "mn", "tn"]
        for candidate in group.negatives:
            assert candidate.similarity.keys() == {"embedding", "rouge"}
            assert candidate.reference_logp is not None
            assert (candidate.sampler_logp is not None) == (candidate.strategy == "an")
            assert (candidate.source_id is not None) == (candidate.strategy == "bn")


def test_the_card_loads_the_set_as_the_hub_does(reference: Path, tmp_path: Path) -> None:
    make(reference, tmp_path / "set")
    loaded = load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["id"][:] == [g.id for g in NegativeSet(str(tmp_path / "set")).groups()]
    card = (tmp_path / "set/README.md").read_text()
    assert "| `mn` | 1 | meanfield: a share of the ground truth's tokens" in card
    assert "20 read, 20 groups, 0 rejected" in card


def test_a_stream_is_read_once_and_counted(reference: Path, tmp_path: Path) -> None:
    from data.sources import facts

    path = tmp_path / "rows.jsonl"
    rows = [*list(facts.examples()[:9]), {"prompt": "p", "completion": ""}, facts.examples()[2]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    options = {"dataset": str(path), "streaming": True, "split": "all", "limit": None, "strategies": "bn=1,tn=1"}
    options["groups_per_shard"] = 12
    manifest = make(reference, tmp_path / "set", **options)
    assert manifest.job["data"]["examples"] is None
    assert manifest.inputs["examples"] == manifest.counts["rows_read"] == 12
    assert manifest.counts["rejected_by_reason"] == {"empty response": 1, "duplicate": 1, "not JSON": 1}
    groups = list(NegativeSet(str(tmp_path / "set")).groups())
    assert [g.prompt for g in groups] == [row["prompt"] for row in rows[:9]]  # in the order of the stream


def test_an_unfinished_set_of_a_stream_is_not_gone_on_with_from_another_stream(reference: Path, tmp_path: Path) -> None:
    """Nothing but its name tells one from the other before it is read."""
    from data.sources import facts

    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in facts.examples()[:12]))
    options = {"streaming": True, "split": "all", "limit": None, "strategies": "tn=1"}
    make(reference, tmp_path / "set", dataset=str(tmp_path / "a.jsonl"), **options)
    with pytest.raises(UserError, match=r"already holds another job: its data\.name is '.*a\.jsonl'"):
        make(reference, tmp_path / "set", dataset=str(tmp_path / "b.jsonl"), **options)


def test_continuation_cuts_any_text_and_counts_what_it_truncates(reference: Path, tmp_path: Path) -> None:
    from data.sources import facts

    path = tmp_path / "texts.jsonl"
    texts = ["".join(row["prompt"] + row["completion"] for row in facts.examples()[i : i + i]) for i in range(2, 9)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {"dataset": str(path), "task": "continuation", "split": "all", "limit": None, "max_length": 60}
    manifest = make(reference, tmp_path / "set", strategies="mn=1,tn=1", **options)
    groups = list(NegativeSet(str(tmp_path / "set")).groups())
    assert len(groups) == 7
    lengths = [(len(g.prompt_ids), len(g.response_ids)) for g in groups]
    assert all(prefix + rest <= 60 for prefix, rest in lengths)
    # Of 59 tokens (one is for EOS), 15% are the prefix.
    assert lengths.count((8, 52)) == manifest.counts["rows_truncated"] > 0
    assert manifest.job["data"]["over_long"] == "truncate"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategies": "an=2,xx=1"}, "unknown strategy 'xx'"),
        ({"signals": "embedding,loudness"}, "unknown ranking signal 'loudness'"),
        ({"signals": "reward"}, "needs --reward_model"),
        ({"bn_batch_size": 1}, "--bn_batch_size must be at least 2"),
        ({"mn_share": 0.0}, "--mn_share must be above 0"),
        ({"log_format": "xml"}, "--log_format must be text or json"),
        ({"max_length": 2}, "no usable row in data set 'facts': 20 rejected"),
        ({"embedder": "/no/such/embedder"}, "embedder '/no/such/embedder' cannot be reached"),
        # What nothing chosen uses.
        ({"strategies": "an=3", "bn_batch_size": 7}, "--bn_batch_size would change nothing: no 'bn' is chosen"),
        (
            {"strategies": "tn=1", "max_new_tokens": 9},
            "--max_new_tokens would change nothing: no 'an' or 'rn' or 'un' is",
        ),
        ({"api": {"model": "gpt"}}, r"--api\.\* would change nothing: no 'un' is chosen. .* add some by --strategies"),
        ({"reward_model": "x"}, "--reward_model would change nothing: no 'reward' is chosen. .* add some by --signals"),
        (
            {"strategies": "bn=3", "engine": {"dtype": "float32"}},
            r"--engine\.\* would change nothing: no 'an' or 'rn' is chosen",
        ),
        ({"strategies": "bn=3", "num_engines": 2}, "--num_engines would change nothing: no 'an' or 'rn' is"),
        (
            {"engine": {"data_parallel_size": 2}},
            "--engine.data_parallel_size 2: engines side by side are asked for by --num_engines. Leave it out.",
        ),
    ],
)
def test_options_that_cannot_work_are_refused_before_an_engine_starts(
    reference: Path, tmp_path: Path, options: dict, message: str
) -> None:
    def no_engine_stub(*_: Any, **__: Any) -> Any:
        raise AssertionError("an engine was started")

    with without_ray(), pytest.raises(UserError, match=message):
        generate(config(reference, tmp_path / "set", **options), Components(engine=no_engine_stub))
    assert not (tmp_path / "set").exists() or not list((tmp_path / "set").iterdir())


def test_a_tokenizer_that_loses_what_it_normalises_is_named(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(reference, tmp_path / "sound", strategies="tn=1", signals="rouge")
    assert "ground truths are not what their tokens read as" not in caplog.text
    model = tmp_path / "lower"
    shutil.copytree(reference, model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps({**tokenizer, "normalizer": {"type": "Lowercase"}}))
    make(model, tmp_path / "set", strategies="tn=1", signals="rouge")
    assert re.search(r"\d+ of the first 8 ground truths are not what their tokens read as, such as '", caplog.text)


class DiskStub:
    """A disk that is full once so many files are written, and has room again when told."""

    def __init__(self, files: int):
        self.left: float = files
        self.fsync = os.fsync

    def __call__(self, handle: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.fsync(handle)


@pytest.mark.parametrize("files", [0, 1, 3, 5, 6, 7, 8, 9, 11, 12, 13])
def test_a_full_disk_ends_in_one_line_and_a_set_that_resumes(
    reference: Path, tmp_path: Path, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "set"
    make(reference, whole, strategies="bn=1,tn=1")
    disk = DiskStub(files)
    monkeypatch.setattr("data.storage.os.fsync", disk)
    with pytest.raises(UserError, match=r"No space left on device. Check the path, its permissions and free space"):
        make(reference, out, strategies="bn=1,tn=1")
    assert not list(tmp_path.rglob(".tmp-*"))
    disk.left = float("inf")
    make(reference, out, strategies="bn=1,tn=1")
    assert {p.name: p.read_bytes() for p in out.glob("*.parquet")} == {
        p.name: p.read_bytes() for p in whole.glob("*.parquet")
    }
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}


def test_a_directory_that_cannot_be_written_is_one_line(reference: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write '/proc/self/set"):
        make(reference, "/proc/self/set")


def test_an_embedder_that_goes_away_ends_in_one_line_and_the_set_resumes(reference: Path, tmp_path: Path) -> None:
    def signals_stub(options: Any, reference: Any) -> Any:
        raise UserError("embedder 'x' cannot be reached")

    with without_ray():
        with pytest.raises(UserError, match=r"embedder 'x' cannot be reached"):
            generate(config(reference, tmp_path / "set"), Components(engine=EngineStub, signals=signals_stub))
        generate(config(reference, tmp_path / "set"), Components(engine=EngineStub))
    assert len(NegativeSet(str(tmp_path / "set"))) == 20


@pytest.mark.parametrize("lost", ["shard-*.parquet", "rejects.parquet"])
def test_a_repair_that_fails_early_ends_in_one_line_and_goes_on(reference: Path, tmp_path: Path, lost: str) -> None:
    def signals_stub(options: Any, reference: Any) -> Any:
        raise UserError("embedder 'x' cannot be reached")

    def row(number: int) -> dict[str, str]:
        return {"prompt": f"Number {number} is", "completion": " a number" if number % 4 else ""}

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in range(20)))
    options = {"dataset": str(tmp_path / "rows.jsonl"), "split": "all", "limit": None, "strategies": "tn=1"}
    out = tmp_path / "set"
    made = make(reference, out, **options)
    assert (made.counts["rows_written"], made.counts["rows_rejected"]) == (15, 5)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for path in out.glob(lost):
        path.unlink()
    kept = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "manifest.json"}
    with without_ray(), pytest.raises(UserError, match=r"embedder 'x' cannot be reached"):
        generate(config(reference, out, **options), Components(engine=EngineStub, signals=signals_stub))
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == kept
    make(reference, out, **options)
    assert {name for name in before if before[name] != (out / name).read_bytes()} <= {"manifest.json", "README.md"}


def test_manifests_hold_neither_key_nor_home(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    (tmp_path / "reference").symlink_to(reference)
    make(
        tmp_path / "reference", tmp_path / "set", engine={"hf_token": "hf_0123456789", "download_dir": f"{tmp_path}/x"}
    )
    manifest, card = ((tmp_path / "set" / name).read_text() for name in ("manifest.json", "README.md"))
    assert json.loads(manifest)["job"]["engine"] == {"hf_token": "***", "download_dir": "~/x"}
    assert json.loads(manifest)["job"]["model"]["name"] == "~/reference"
    assert str(tmp_path) not in manifest + card
    assert "hf_0123456789" not in manifest + card


def test_remote_code_and_pickled_weights_are_not_loaded(reference: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(reference, copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \*.safetensors weights"):
        make(copy, tmp_path / "set")
    remote = tmp_path / "remote"
    shutil.copytree(reference, remote)
    details = json.loads((remote / "config.json").read_text())
    details |= {"model_type": "custom", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (remote / "config.json").write_text(json.dumps(details))
    (remote / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match=r"contains custom code .* If you trust its code: --trust_remote_code true"):
        make(remote, tmp_path / "set", strategies="tn=1")
    assert not (tmp_path / "ran").exists()


def test_json_for_clusters_has_no_other_line_and_no_home(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # or pytest's would be there already
    monkeypatch.setenv("TQDM_DISABLE", "0")  # put back afterwards
    stubs = Components(engine=EngineStub, scorer=ScorerStub, signals=signals_stub)
    monkeypatch.setattr("negatives_gen.job.job.Components", lambda: stubs)
    words = ["--model", str(reference), "--dataset", "facts", "--limit", "8", "--strategies", "an=2", "--embedder"]
    words += ["reference", "--log_format", "json", "--out", str(tmp_path / "set")]
    try:
        with without_ray():
            assert [main(words), main(words), main([*words, "--seed", "1"])] == [0, 0, 2]
    finally:
        logging.captureWarnings(False)
    said = capsys.readouterr()
    outcome = json.loads(said.out.splitlines()[0])
    assert (outcome["event"], outcome["out"], outcome["rows_written"]) == ("done", "~/set", 8)
    lines = [json.loads(line) for line in said.err.splitlines()]
    told = [line for line in lines if line.get("logger") == "data.sources.source_options"]
    assert [line["message"] for line in told] == ["facts: 960 rows: 480 train, 480 held out; read: 8 of both"] * 3
    *_, complete, error = (line for line in lines if line not in told)
    assert (complete["level"], complete["logger"]) == ("INFO", "negatives_gen.job.job")
    assert complete["message"] == "~/set is complete already"
    assert error["level"] == "ERROR"
    assert "already holds another job: its seed is 0" in error["message"]
    assert str(tmp_path) not in said.out + said.err
