"""The output directory of a training run: which job it belongs to.

Nothing here writes before `claim_output` but who owns the directory, so that a run that is refused leaves no trace.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.claim import CLAIMS, Claim, claimed
from data.command.errors import UserError
from data.command.options import fields_of_entries
from data.manifest import first_difference
from data.shape import as_read, parse_json
from data.storage import TEMPORARY_PREFIX, Folder
from trainer.objectives import OBJECTIVES
from trainer.record import UNDECIDED

JOB_FILE = "trainer_job.json"
# transformers writes it last, into a checkpoint as beside the final model.
STATE_FILE = "trainer_state.json"
METRICS_FILE = "metrics.jsonl"

log = logging.getLogger(__name__)


@contextmanager
def owned_output(output: Path, *, is_main: bool) -> Iterator[Claim | None]:
    """Own the output directory while the run lasts; of several processes the main one does, the others get None.

    Raises:
        UserError: another run owns it, it is a file, or it cannot be written.
    """
    if not is_main:
        yield None
        return
    _refuse_file(output)
    with claimed(str(output)) as claim:
        yield claim


def check_output(output: Path, job: dict[str, Any], resume: str | None, checkpoint: str | None) -> None:
    """Refuse an output directory that holds something else, or this job where it is not to be resumed.

    Raises:
        UserError: saying what the directory holds.
    """
    _refuse_file(output)
    if (output / JOB_FILE).exists():
        if _holds_nothing_else(output):
            log.info("the run that began in %s was killed before it logged or saved anything: starting anew", output)
            return
        if checkpoint and _is_damaged(output / JOB_FILE):  # as after a power loss; the checkpoint says its job too
            log.warning("%s in %s is damaged and is written anew", JOB_FILE, output)
            return
        if different := difference(read_job(output / JOB_FILE), job):
            key, theirs, ours = different
            raise UserError(
                f"output directory '{output}' already holds another job: its {key} is {theirs!r}, this job's is "
                f"{ours!r}. Choose another --output_dir."
            )
        if resume is None:
            raise UserError(
                f"output directory '{output}' already holds this job. Go on from its last checkpoint with "
                "--resume_from_checkpoint true, or choose another --output_dir."
            )
        if checkpoint is None and (output / STATE_FILE).exists():
            raise UserError(
                f"output directory '{output}' already holds this job, finished, and no checkpoint to go on from. "
                "Choose another --output_dir to train again."
            )
    elif output.is_dir() and any(not p.name.startswith((TEMPORARY_PREFIX, CLAIMS)) for p in output.iterdir()):
        raise UserError(f"output directory '{output}' already holds other files. Choose an empty or new --output_dir.")


def claim_output(output: Path, job: dict[str, Any]) -> None:
    """Write the job's description into the output directory. Raises UserError if it cannot be written."""
    Folder(str(output)).write(JOB_FILE, (json.dumps(as_read(job, default=str), indent=2) + "\n").encode())


def _holds_nothing_else(output: Path) -> bool:
    """Whether a directory holds the record of a run and nothing that it came to: not even one log."""
    others = [path for path in output.iterdir() if not path.name.startswith((TEMPORARY_PREFIX, CLAIMS, JOB_FILE))]
    return all(path.name == METRICS_FILE and path.stat().st_size == 0 for path in others)


def _refuse_file(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"output directory '{output}' is a file. Choose another --output_dir.")


def difference(theirs: dict[str, Any], job: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first thing in which the record of another run differs from this job's: its name, theirs, ours."""
    options = fields_of_entries(OBJECTIVES, None)
    # Records of before 0.5 hold options of objectives that have none; older ones lack options that were made since.
    others = [name for name in options if name not in job or (job[name] is None and name not in theirs)]
    found = first_difference(theirs, as_read(job, default=str), ignore=[*others, *UNDECIDED])
    return (found[0].removeprefix("training."), *found[1:]) if found else None


def read_job(record: Path) -> dict[str, Any]:
    """A record of a run. Raises UserError if it is damaged."""
    try:
        job = parse_json(record.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"'{record}' is damaged ({error}). Choose another --output_dir.") from error
    if not isinstance(job, dict):
        raise UserError(f"'{record}' is damaged (no JSON object). Choose another --output_dir.")
    return job


def _is_damaged(record: Path) -> bool:
    try:
        read_job(record)
    except UserError:
        return True
    return False
