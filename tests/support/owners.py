"""Owners of a directory that are dead, or on another machine, without a process to kill."""

import dataclasses
import json

from data.claim import Claim, Owner

# Above the highest number that a Linux process can have.
NO_PROCESS = 2**22 + 1


def replace_owner(claim: Claim, **changes: object) -> Owner:
    """Rewrite a claim as if another process had made it. The claim's own process still holds it by its token."""
    owner = dataclasses.replace(claim.owner, **changes)  # type: ignore[arg-type]  # names of its fields
    claim.folder.write(f".claim/{claim.number:05d}.json", json.dumps(dataclasses.asdict(owner)).encode())
    return owner


def die(claim: Claim | None) -> None:
    """Let others see the owner as dead from here on, while its object is a straggler that knows nothing of it."""
    assert claim is not None
    replace_owner(claim, pid=NO_PROCESS)
