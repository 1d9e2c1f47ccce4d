"""A hub that records what it is asked for."""

from pathlib import Path
from typing import Any

import huggingface_hub


class HubStub:
    """Takes everything.

    Attributes:
        calls: what was asked for: method, repository, options.
        files: of the last upload, before the folder it came from is gone.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}

    def whoami(self) -> dict[str, Any]:
        return {"name": "me", "orgs": [{"name": "ours"}], "auth": {"accessToken": {"role": "write"}}}

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", repo_id, options))

    def upload_folder(self, *, repo_id: str, **options: Any) -> None:
        self.calls.append(("upload_folder", repo_id, options))
        ignored = options.get("ignore_patterns")
        folder = Path(options["folder_path"])
        paths = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        kept = huggingface_hub.utils.filter_repo_objects(paths, ignore_patterns=ignored)
        self.files = {path: (folder / path).read_bytes() for path in kept}


class ClosedHubStub(HubStub):
    """Refuses everybody."""

    def create_repo(self, repo_id: str, **options: Any) -> None:
        raise huggingface_hub.errors.LocalTokenNotFoundError("Token is required.\nA second line.")
