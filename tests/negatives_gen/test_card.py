"""The dataset card as the hub reads it, and the upload to a hub that a stub stands for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import DatasetCard

from data.command.errors import UserError
from data.manifest import Manifest
from data.shards import NegativeSet
from negatives_gen.job.card import card, push_to_hub, require_hub


@pytest.fixture
def manifest(negative_set: Path) -> Manifest:
    """The set's manifest with what a job adds to it."""
    found = NegativeSet(str(negative_set)).manifest
    job = {
        **found.job,
        "model": {**found.job["model"], "name": "~/models/reference"},
        "data": {"name": "facts", "task": "prompt-completion", "split": "train"},
        "strategies": {"an": {"count": 3, "top_k": 50, "temperature": 1.0}, "tn": {"count": 1, "of": "a|b"}},
        "seed": 7,
    }
    return replace(found, job=job)


class HubStub:
    """Records what a hub would be asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", repo_id, options))

    def upload_folder(self, *, repo_id: str, **options: Any) -> None:
        self.calls.append(("upload_folder", repo_id, options))


class ClosedHubStub(HubStub):
    """Refuses everybody."""

    def create_repo(self, repo_id: str, **options: Any) -> None:
        raise huggingface_hub.errors.LocalTokenNotFoundError("Token is required.\nA second line.")


def test_the_card_says_what_is_in_the_set(manifest: Manifest) -> None:
    text = card(manifest)
    data = DatasetCard(text).data.to_dict()
    assert data["license"] == "other"
    assert data["size_categories"] == ["n<1K"]
    files = [{"split": "train", "path": "shard-*.parquet"}]
    assert data["configs"] == [{"config_name": "default", "data_files": files}]
    for line in (
        "| `an` | 3 | autoregressive: sampled from the reference model, or --sampler | top_k 50, temperature 1.0 |",
        "| `tn` | 1 | truncation: the ground truth cut at a random position | of a\\|b |",
        "| rows | 48 read, 48 groups, 0 rejected (`rejects.parquet` says why) |",
        f"| reference model | `~/models/reference`, weights SHA-256 `{manifest.job['model']['weights_sha256'][:16]}` |",
        "| data | `facts`, task `prompt-completion`, split `train` |",
        "| seed | 7 |",
    ):
        assert line in text.splitlines()
    assert (
        "Columns: `id`, `prompt`, `response`, `query` (what a person asked), `split` (half of the data source: train "
        "on `train` only), `prompt_ids`, `response_ids`, `reference_logp`, `in_support` (whether the sampler could "
        "have said the ground truth), `response_embedding`, "
        "`messages` (of a chat: list of `role`, `content`), `negatives` (list of `strategy`, `ids`, `text`, "
        "`reference_logp`, `sampler_logp` (under what was sampled from), `similarity`, `finish_reason`, `source_id`, "
        "`seed`). `manifest.json` holds checksums"
    ) in text
    assert "arXiv 2502.16433" in text
    assert "Not TRL's CPO of arXiv 2401.08417" in text
    assert str(Path.home()) + "/" not in text


@pytest.mark.parametrize(
    ("rows", "size"),
    [(999, "n<1K"), (1_000, "1K<n<10K"), (99_999, "10K<n<100K"), (999_999, "100K<n<1M"), (1_000_000, "1M<n<10M")],
)
def test_the_size_category_is_the_hubs(manifest: Manifest, rows: int, size: str) -> None:
    larger = replace(manifest, counts={**manifest.counts, "rows_written": rows})
    assert DatasetCard(card(larger)).data.to_dict()["size_categories"] == [size]


def test_a_set_is_pushed_whole(monkeypatch: pytest.MonkeyPatch, negative_set: Path) -> None:
    hub = HubStub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    push_to_hub(str(negative_set), "me/negatives")
    assert hub.calls == [
        ("create_repo", "me/negatives", {"repo_type": "dataset", "exist_ok": True}),
        ("upload_folder", "me/negatives", {"repo_type": "dataset", "folder_path": str(negative_set)}),
    ]


def test_a_refusal_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, negative_set: Path) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", ClosedHubStub)
    with pytest.raises(UserError) as error:
        push_to_hub(str(negative_set), "me/negatives")
    assert str(error.value) == (
        f"'{negative_set}' is finished, but cannot be pushed to 'me/negatives': Token is required. Log in with "
        "`hf auth login`, then run the same command again."
    )
    with pytest.raises(UserError, match="only a set on a disk can be pushed"):
        push_to_hub("s3://bucket/set", "me/negatives")


@pytest.mark.parametrize(
    ("repo", "role", "why"),
    [
        ("me/set", "write", None),
        ("ours/set", "fineGrained", None),
        ("set", "write", None),
        ("theirs/set", "write", "'me' does not belong to 'theirs'"),
        ("me/set", "read", "the token may only read"),
    ],
)
def test_a_name_that_may_not_be_written_to_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, repo: str, role: str, why: str | None
) -> None:
    class LoginStub(HubStub):
        def whoami(self) -> dict[str, Any]:
            return {"name": "me", "orgs": [{"name": "ours"}], "auth": {"accessToken": {"role": role}}}

    monkeypatch.setattr(huggingface_hub, "HfApi", LoginStub)
    if why is None:
        require_hub(repo)
        return
    with pytest.raises(UserError, match=f"^nothing can be pushed to '{repo}': {why}. Log in with another token"):
        require_hub(repo)


@pytest.mark.parametrize("repo", ["my set", "user/a b", "me/x--y", "a/b/c"])
def test_a_name_that_is_none_is_refused_before_the_work(repo: str) -> None:
    with pytest.raises(UserError, match=f"^--push_to_hub '{repo}' is no name of a data set: "):
        require_hub(repo)


def test_without_a_login_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed_stub(self: Any) -> None:
        raise huggingface_hub.errors.LocalTokenNotFoundError("Token is required.\nA second line.")

    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", closed_stub)
    with pytest.raises(UserError, match=r"^nothing can be pushed to 'me/set': Token is required. Log in with `hf auth"):
        require_hub("me/set")
