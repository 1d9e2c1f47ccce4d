"""The Hugging Face hub: may this login push there, found out before the work, and the upload after it.

Logins are the hub client's own ($HF_TOKEN, `hf auth login`): no token passes through here.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.command.errors import UserError, first_line

DATASET, MODEL = "dataset", "model"
SPOKEN = {DATASET: "data set", MODEL: "model"}


def require_hub(repo_id: str, kind: str, option: str = "--push_to_hub") -> None:
    """Raise UserError if the name is none, or the hub knows no login here that may write to a repository of this name.

    Args:
        kind: DATASET or MODEL.
        option: that gave the name, for the message.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{option} '{repo_id}' is no name of a {SPOKEN[kind]}: {first_line(error)}") from error
    try:
        login = HfApi().whoami()
    except Exception as error:  # the hub client raises a dozen unrelated classes
        raise UserError(
            f"nothing can be pushed to '{repo_id}': {first_line(error).rstrip('.')}. Log in with `hf auth login`, or "
            "leave --push_to_hub out."
        ) from error
    owner, _, _ = repo_id.rpartition("/")
    owners = [login.get("name"), *(one.get("name") for one in login.get("orgs") or [])]
    role = ((login.get("auth") or {}).get("accessToken") or {}).get("role")
    if (owner and owner not in owners) or role == "read":
        why = "the token may only read" if role == "read" else f"'{login.get('name')}' does not belong to '{owner}'"
        raise UserError(f"nothing can be pushed to '{repo_id}': {why}. Log in with another token, or choose a name.")


def push_folder(
    path: str,
    repo_id: str,
    kind: str,
    *,
    named: str | None = None,
    ignore: Sequence[str] = (),
    private: bool | None = None,
    revision: str | None = None,
) -> None:
    """Upload what a local folder holds to a repository, which is made if there is none.

    Args:
        kind: DATASET or MODEL.
        named: what is pushed, for the message; None: the path.
        ignore: patterns of paths in the folder that stay here.
        private: of a repository that is made; None: as its owner's are.
        revision: branch; None: the main one.

    Raises:
        UserError: the hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    made: dict[str, Any] = {} if private is None else {"private": private}
    options: dict[str, Any] = {"ignore_patterns": list(ignore)} if ignore else {}
    options |= {} if revision is None else {"revision": revision}
    try:
        api.create_repo(repo_id, repo_type=kind, exist_ok=True, **made)
        api.upload_folder(repo_id=repo_id, repo_type=kind, folder_path=path, **options)
    except Exception as error:  # the hub client raises a dozen unrelated classes
        raise UserError(
            f"'{named or path}' is finished, but cannot be pushed to '{repo_id}': {first_line(error).rstrip('.')}. Log "
            "in with `hf auth login`, then run the same command again."
        ) from error


def push_files(files: Mapping[str, bytes], repo_id: str, kind: str, *, named: str) -> None:
    """`push_folder` of files that lie in no folder of their own: name -> content."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        push_folder(folder, repo_id, kind, named=named)


def on_hub(name: str) -> bool:
    """Whether a name that was found and is no local path is a hub id."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not os.path.exists(os.path.expanduser(name))
