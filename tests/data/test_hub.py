"""Publishing on a hub that a stub stands for: what is refused before the work, and what is uploaded."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from data.command.errors import UserError
from data.hub import DATASET, MODEL, on_hub, push_files, push_folder, require_hub
from tests.support.hub import ClosedHubStub, HubStub


def test_a_set_is_pushed_whole(monkeypatch: pytest.MonkeyPatch, negative_set: Path) -> None:
    hub = HubStub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    push_folder(str(negative_set), "me/negatives", DATASET)
    assert hub.calls == [
        ("create_repo", "me/negatives", {"repo_type": "dataset", "exist_ok": True}),
        ("upload_folder", "me/negatives", {"repo_type": "dataset", "folder_path": str(negative_set)}),
    ]


def test_a_refusal_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, negative_set: Path) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", ClosedHubStub)
    with pytest.raises(UserError) as error:
        push_folder(str(negative_set), "me/negatives", DATASET)
    assert str(error.value) == (
        f"'{negative_set}' is finished, but cannot be pushed to 'me/negatives': Token is required. Log in with "
        "`hf auth login`, then run the same command again."
    )


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
    class RoleStub(HubStub):
        def whoami(self) -> dict[str, Any]:
            return {**super().whoami(), "auth": {"accessToken": {"role": role}}}

    monkeypatch.setattr(huggingface_hub, "HfApi", RoleStub)
    if why is None:
        require_hub(repo, DATASET)
        return
    with pytest.raises(UserError, match=f"^nothing can be pushed to '{repo}': {why}. Log in with another token"):
        require_hub(repo, DATASET)


@pytest.mark.parametrize("repo", ["my set", "user/a b", "me/x--y", "a/b/c"])
def test_a_name_that_is_none_is_refused_before_the_work(repo: str) -> None:
    with pytest.raises(UserError, match=f"^--push_to_hub '{repo}' is no name of a data set: "):
        require_hub(repo, DATASET)


def test_without_a_login_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed_stub(self: Any) -> None:
        raise huggingface_hub.errors.LocalTokenNotFoundError("Token is required.\nA second line.")

    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", closed_stub)
    with pytest.raises(UserError, match=r"^nothing can be pushed to 'me/set': Token is required. Log in with `hf auth"):
        require_hub("me/set", DATASET)


def test_what_stays_here_and_where_it_goes_is_said_to_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = HubStub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    for name in ("model.safetensors", "checkpoint-2/model.safetensors", ".claim/00001.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    ignored = ["checkpoint-*", ".claim/*"]
    push_folder(str(tmp_path), "me/model", MODEL, ignore=ignored, private=True, revision="try")
    assert hub.calls[0] == ("create_repo", "me/model", {"repo_type": "model", "exist_ok": True, "private": True})
    assert hub.calls[1][2].items() >= {"repo_type": "model", "ignore_patterns": ignored, "revision": "try"}.items()
    assert set(hub.files) == {"model.safetensors"}


def test_files_of_no_folder_are_pushed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = HubStub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    push_files({"README.md": b"card", "report.json": b"{}"}, "me/report", DATASET, named="runs/report")
    assert hub.files == {"README.md": b"card", "report.json": b"{}"}
    monkeypatch.setattr(huggingface_hub, "HfApi", ClosedHubStub)
    with pytest.raises(
        UserError, match=r"^'runs/report' is finished, but cannot be pushed to 'me/report': Token is req"
    ):
        push_files({"README.md": b"card"}, "me/report", DATASET, named="runs/report")


def test_a_hub_id_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "cpo").mkdir(parents=True)
    assert on_hub("openai-community/gpt2")
    assert on_hub("gpt2")
    assert not any(map(on_hub, ("runs/cpo", str(tmp_path), "a/b/c", "s3://bucket/x", "../x")))
