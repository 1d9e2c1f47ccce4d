"""Jobs with UN: what a server stopped goes on, what was paid for is not asked again, and the server may move."""

from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.command.options import make_config
from data.shards import NegativeSet
from negatives_gen.config import GenerateConfig
from negatives_gen.job.job import generate
from negatives_gen.verbs.extend import ExtendConfig, extend
from tests.support.chat_server import ChatAPIStub, chat_api_stub
from tests.support.without_ray import without_ray

pytestmark = pytest.mark.seconds

KEY = "sk-a-secret-of-the-tests"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_job_that_the_api_stopped_goes_on_and_its_manifest_holds_no_secret(
    server: ChatAPIStub, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"

    def run(**api: Any) -> None:
        config = make_config(
            GenerateConfig,
            model=str(reference), dataset="facts", limit=8, out=str(out), strategies="tn=1,un=2", groups_per_shard=4,
            embedder="reference", api={"model": "m", "base_url": server.url.replace("//", "//user:pass@"), **api},
        )  # fmt: skip
        with without_ray():
            generate(config)

    server.lock_after = 8  # the first shard's
    with pytest.raises(UserError, match="refuses the key"):
        run()
    first = (out / "shard-00000.parquet").read_bytes()
    server.lock_after = None
    run(concurrency=1, retries=0)
    assert (out / "shard-00000.parquet").read_bytes() == first
    manifest = (out / "manifest.json").read_text()
    assert KEY not in manifest
    assert "user:pass" not in manifest
    negatives = NegativeSet(str(out))
    assert negatives.manifest.job["strategies"]["un"]["api"]["base_url"] == server.url
    for group in negatives.groups():
        assert [c.strategy for c in group.negatives] == ["tn", "un", "un"]
        assert all(c.reference_logp is not None and "embedding" in c.similarity for c in group.negatives)


def test_answers_of_a_shard_that_was_not_finished_are_paid_for_once(
    server: ChatAPIStub, reference: Path, tmp_path: Path
) -> None:
    def run(out: Path) -> dict[str, bytes]:
        config = make_config(
            GenerateConfig,
            model=str(reference), dataset="facts", limit=8, out=str(out), strategies="un=2", groups_per_shard=8,
            embedder="reference", api={"model": "m", "base_url": server.url, "concurrency": 1, "retries": 0},
        )  # fmt: skip
        with without_ray():
            generate(config)
        return {file.name: file.read_bytes() for file in out.glob("*.parquet")}

    whole = run(tmp_path / "whole")
    asked = sorted(map(repr, server.requests))
    assert len(asked) == 16
    for damage in (False, True):
        server.requests.clear()
        out = tmp_path / f"stopped-{damage}"
        for answered in (5, 9):
            server.lock_after = answered
            with pytest.raises(UserError, match="refuses the key"):
                run(out)
            server.requests.pop()  # which was refused
        parts = sorted((out / "_job/answers").iterdir())
        assert [part.name for part in parts] == ["00000-1.json", "00000-2.json"]
        if damage:
            parts[0].write_text("[" * 100_000)
        server.lock_after = None
        assert run(out) == whole
        assert not (out / "_job").exists()
        assert len(server.requests) == 16 + 5 * damage
        assert sorted({repr(request) for request in server.requests}) == asked


def test_a_set_whose_server_has_moved_can_grow(server: ChatAPIStub, reference: Path, tmp_path: Path) -> None:
    config = make_config(
            GenerateConfig,
        model=str(reference), dataset="facts", limit=4, out=str(tmp_path / "set"), strategies="un=1",
        embedder="reference", api={"model": "m", "base_url": server.url, "temperature": 0.5, "max_tokens": 20},
    )  # fmt: skip

    def grow(strategies: str, **options: Any) -> dict[str, Any]:
        asked = make_config(ExtendConfig, out=str(tmp_path / strategies), strategies=strategies, **options)
        return extend(str(tmp_path / "set"), asked).job["strategies"]["un"]

    with chat_api_stub() as moved, without_ray():
        generate(config)
        old = len(server.requests)
        with pytest.raises(UserError, match=r"--api\.temperature 1\.0 would .* its 'un' has api\.temperature 0\.5"):
            grow("un=2", api={"temperature": 1.0})
        with pytest.raises(UserError, match="--max_new_tokens 30 would change nothing"):
            grow("un=2", max_new_tokens=30)
        assert grow("un=2", api={"base_url": moved.url, "retries": 1}) == {
            "count": 2, "max_new_tokens": 20,
            "api": {
                "model": "m", "base_url": moved.url, "temperature": 0.5, "concurrency": 16, "timeout": 60.0,
                "retries": 1,
            },
        }  # fmt: skip
        assert (len(server.requests), len(moved.requests)) == (old, 4)
