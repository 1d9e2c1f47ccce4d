"""Stage 1 with a real vLLM and without Ray: a job that goes on, and an engine that refuses to start."""

import json
import shutil
from multiprocessing.managers import RemoteError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from data.command.options import make_config
from data.manifest import Manifest
from data.schema import SCHEMA_VERSION
from data.shards import NegativeSet
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from tests.support.without_ray import without_ray

if TYPE_CHECKING:
    from tests.support.answering import Engines


@pytest.fixture
def settings(options: dict[str, Any], answering_model: Path) -> dict[str, Any]:
    return {**options, "model": str(answering_model)}


def make(engines: "Engines", settings: dict[str, Any], out: Path) -> Manifest:
    """The set, with an engine in the session's vLLM process."""
    from tests.support.answering import SteppedProxy

    with without_ray():
        return generate(
            make_config(GenerateConfig, **settings, out=str(out)),
            Components(engine=lambda *arguments, **more: SteppedProxy(engines.Engine(*arguments, **more))),
        )


def test_an_interrupted_job_goes_on_and_leaves_finished_shards_as_they_are(
    engines: "Engines", settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The state that a kill leaves: two of three shards with their records, a temporary file, no manifest."""
    generated, out = tmp_path / "whole", tmp_path / "set"
    make(engines, settings, generated)
    capsys.readouterr()
    (out / "_job").mkdir(parents=True)
    manifest = json.loads((generated / "manifest.json").read_text())
    claim = {
        **manifest["job"],
        "ranking signals": manifest["signals"],
        "parent": None,
        "schema_version": SCHEMA_VERSION,
    }
    (out / "_job/job.json").write_text(json.dumps(claim))
    (out / ".tmp-half").write_bytes(b"PAR1")
    rejects = [vars(r) for r in NegativeSet(str(generated)).rejects()]
    for index in (0, 2):
        record = manifest["shards"][index]
        mine, rejects = rejects[: record["rows_rejected"]], rejects[record["rows_rejected"] :]
        if index == 0:
            rejects = rejects[manifest["shards"][1]["rows_rejected"] :]
        shutil.copy2(generated / record["file"], out)
        (out / f"_job/shard-{index:05d}.json").write_text(json.dumps({"record": record, "rejects": mine}))
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.glob("*.parquet")}

    make(engines, settings, out)
    assert "3 shards, 1 to do" in capsys.readouterr().err
    assert {n: (p.read_bytes(), p.stat().st_mtime_ns) for n, p in ((n, out / n) for n in before)} == before
    whole, resumed = NegativeSet(str(generated)), NegativeSet(str(out))
    assert [g.id for g in resumed.groups()] == [g.id for g in whole.groups()]
    assert resumed.rejects() == whole.rejects()
    assert resumed.manifest.counts == whole.manifest.counts
    assert not [p for p in out.iterdir() if p.name.startswith((".", "_"))]


def test_an_option_that_vllm_does_not_know_is_a_user_error(engines: "Engines", answering_model: Path) -> None:
    with pytest.raises(RemoteError, match=r"UserError: vLLM cannot serve .*nonsense"):
        engines.Engine(str(answering_model), options={"nonsense": 1})
