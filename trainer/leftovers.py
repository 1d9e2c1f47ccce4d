"""What the checkpoints of a run hold beside its model, and how to drop what only a resumed run needs."""

import shlex
from pathlib import Path

from data.command.wording import counted, size
from trainer.resume import FSDP_OPTIMIZER, OPTIMIZER, SCALER, SCHEDULER, checkpoints

# Of a checkpoint, what only --resume_from_checkpoint reads: optimiser, schedule, gradient scale, random numbers.
FOR_RESUMING = OPTIMIZER, *FSDP_OPTIMIZER, SCHEDULER, SCALER, "rng_state*.pth"


def describe_checkpoints(output: Path) -> str:
    """What the checkpoints in a finished run's directory hold, in a line; "" where there are none.

    Names the command that leaves a model in each of them, and nothing to go on with.
    """
    found = checkpoints(output)
    if not found:
        return ""
    kept = [path for checkpoint in found for name in FOR_RESUMING for path in checkpoint.glob(name)]
    one = len(found) == 1
    said = (
        f"{found[0].name if one else counted(len(found), 'checkpoint')} in {output}, {size(sum(map(_bytes, found)))}: "
        f"{'the model' if one else 'each a model'} as it was then"
    )
    if not kept:
        return said
    patterns = sorted({name for name in FOR_RESUMING for checkpoint in found if list(checkpoint.glob(name))})
    names = patterns[0] if len(patterns) == 1 else f"{{{','.join(patterns)}}}"
    return (
        f"{said}, and {size(sum(map(_bytes, kept)))} of optimiser and the like that only --resume_from_checkpoint "
        f"needs. To drop that: rm -r {shlex.quote(str(output))}/checkpoint-*/{names}"
    )


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
