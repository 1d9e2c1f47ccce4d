"""Which checkpoint a run goes on from: one that is whole, for these processes, and of this job."""

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from data.command.errors import UserError
from data.command.wording import counted
from data.models import WEIGHTS, read_header, read_object, weight_files
from data.shape import Count, IfThere, ListOf, Maybe, as_read, misfit, parse_json
from trainer.monitor.resumption import was_stopped_early
from trainer.output import JOB_FILE, STATE_FILE, difference, read_job
from trainer.sharding import is_sharded

if TYPE_CHECKING:
    from trl import ModelConfig

log = logging.getLogger(__name__)

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Under FSDP: of a whole state the file, of a sharded one the folder.
FSDP_WEIGHTS = "pytorch_model_fsdp.bin", "pytorch_model_fsdp_0"
FSDP_OPTIMIZER = "optimizer.bin", "optimizer_0"
OPTIMIZER, SCHEDULER, SCALER = "optimizer.pt", "scheduler.pt", "scaler.pt"
# What transformers and our callbacks read of a trainer_state.json.
STATE = {
    "global_step": Count(),
    "epoch": Maybe(float),
    "log_history": ListOf({"step": Count()}),
    "total_flos": IfThere(float),
    "stateful_callbacks": IfThere(
        {
            "TrainerControl": dict,
            "Diagnosis": IfThere({"attributes": {"said": ListOf(str)}}),
            "GroundTruthWatch": IfThere({"attributes": {"warned": bool}}),  # of before 0.7
            "EarlyStopping": IfThere(
                {
                    "args": {"early_stopping_patience": Count()},
                    "attributes": {"early_stopping_patience_counter": Count()},
                }
            ),
            "JobStamp": IfThere({"attributes": {"job": Maybe(dict)}}),
        }
    ),
}


@dataclass(frozen=True)
class Needs:
    """What of a run decides the files that it goes on from.

    Attributes:
        processes: how many it has.
        fsdp: whether weights and optimiser are sharded over them.
        adapter: whether an adapter is trained.
        scaled: whether gradients are scaled (float16).
    """

    processes: int = 1
    fsdp: bool = False
    adapter: bool = False
    scaled: bool = False

    @classmethod
    def of(cls, training: TrainingArguments, model: "ModelConfig") -> "Needs":
        """What a run with these arguments needs, in the environment that accelerate's launcher made."""
        return cls(training.world_size, is_sharded(training), model.use_peft, training.mixed_precision == "fp16")

    @property
    def random_states(self) -> list[str]:
        """The files of the random number generators, one per process."""
        if self.processes == 1:
            return ["rng_state.pth"]
        return [f"rng_state_{process}.pth" for process in range(self.processes)]


def resume_from(given: str | bool | None) -> str | None:
    """What `--resume_from_checkpoint` asks for: None (also for false), "true", or a checkpoint's path."""
    text = "" if given is None else str(given)
    if text.lower() in ("", "false", "none", "null"):
        return None
    return "true" if text.lower() == "true" else text


def find_checkpoint(resume: str | None, output: Path, needs: Needs) -> str | None:
    """The checkpoint to go on from: for "true" the newest whole one of the output directory, or None.

    One that an interrupted save left without its last file, trainer_state.json, is passed over with a warning.

    Raises:
        UserError: the path given is no whole checkpoint, or the directory holds checkpoints and none is whole.
    """
    if resume is None:
        return None
    if resume == "true":
        whole, problems = _newest_whole(output, needs)
        first = next(iter(problems.items()), None)
        if first and whole is None:
            raise UserError(
                f"no checkpoint in '{output}' can be gone on from: {first[0]} {first[1]}. Restore it, or choose "
                "another --output_dir to train again."
            )
        if first and whole:
            log.warning("%s %s: going on from %s instead", *first, whole.name)
        for name in _unfinished(output, since=whole):
            log.warning("%s was not saved to its end, it has no %s: passed over", name, STATE_FILE)
        return str(whole) if whole else None
    given = Path(resume)
    if not given.is_dir():
        raise UserError(f"--resume_from_checkpoint '{resume}' does not exist. Give a checkpoint directory, or true.")
    if not (given / STATE_FILE).is_file():
        raise UserError(f"--resume_from_checkpoint '{resume}' is no checkpoint: it holds no {STATE_FILE}.")
    if found := problem(given, needs):
        whole, _ = _newest_whole(given.absolute().parent, needs)
        advice = f"The newest whole one beside it is {whole.name}." if whole else "Give a whole one."
        raise UserError(f"--resume_from_checkpoint '{resume}' {found}. {advice}")
    return resume


def problem(checkpoint: Path, needs: Needs) -> str | None:
    """Why a run cannot go on from a checkpoint, in words behind its name; None if it can."""
    try:
        state = read_object(checkpoint / STATE_FILE)
    except UserError:
        return f"is damaged: {STATE_FILE} {_damage(checkpoint / STATE_FILE) or 'is no JSON object'}"
    if wrong := misfit(state, STATE):
        return f"is damaged: in {STATE_FILE} {wrong}"
    step = checkpoint.name.rpartition("-")[2]
    if checkpoint.name == f"checkpoint-{step}" and step.isdecimal() and int(step) != state["global_step"]:
        return f"is damaged: its {STATE_FILE} is of step {state['global_step']}"
    saved_by = len(list(checkpoint.glob("rng_state*.pth")))
    optimizer = [OPTIMIZER] if not needs.fsdp else [_first_there(checkpoint, FSDP_OPTIMIZER)]
    lacking = [name for name in (*optimizer, SCHEDULER) if not (checkpoint / name).exists()]
    if not saved_by and len(lacking) == 2:
        return (
            f"was saved with --save_only_model, or its optimiser was dropped: it lacks {', '.join(lacking)} and "
            f"{needs.random_states[0]}, so it is a --model to start from, not a run to go on with"
        )
    if saved_by and saved_by != needs.processes:
        return f"was saved by {counted(saved_by, 'process', 'processes')}, and this run has {needs.processes}"
    names = [*optimizer, SCHEDULER, *needs.random_states, *([SCALER] if needs.scaled else [])]
    try:
        names = [*_weights(checkpoint, needs), *names]
    except UserError as error:
        return f"is damaged: {str(error).rstrip('.')}"
    names += [name for name in ("config.json", ADAPTER_CONFIG) if (checkpoint / name).exists()]
    for name in names:
        if found := _damage(checkpoint / name):
            return f"is damaged: {name} {found}"
    return None


def is_finished(output: Path, checkpoint: str, needs: Needs) -> bool:
    """Whether a checkpoint is of a run's last step, and the run's model lies in the output directory, whole."""
    if not (output / STATE_FILE).is_file():
        return False
    try:
        last, final = (read_object(path / STATE_FILE) for path in (Path(checkpoint), output))
        weights = [ADAPTER] if needs.adapter else [path.name for path in weight_files(output)] or [WEIGHTS]
    except UserError:
        return False
    if last["global_step"] != final.get("global_step"):
        return False
    if last["global_step"] != last.get("max_steps") and not was_stopped_early(last):
        return False
    return not any(_damage(output / name) for name in (*weights, ADAPTER_CONFIG if needs.adapter else "config.json"))


def check_job(checkpoint: str, job: dict[str, Any]) -> None:
    """Refuse a checkpoint of another job.

    Raises:
        UserError: saying what differs, or that the checkpoint does not say which job it is of.
    """
    path = Path(checkpoint)
    stamps = read_object(path / STATE_FILE).get("stateful_callbacks") or {}
    theirs = stamps.get(JobStamp.__name__, {}).get("attributes", {}).get("job")
    beside = path.absolute().parent / JOB_FILE
    if theirs is None and beside.is_file():  # before 0.6.0 the directory said it for all its checkpoints
        theirs = read_job(beside)
    if not isinstance(theirs, dict):
        raise UserError(
            f"checkpoint '{checkpoint}' does not say which job it is of, nor is there a {JOB_FILE} beside it. Put it "
            "back into the --output_dir of its run."
        )
    if different := difference(theirs, job):
        key, there, here = different
        raise UserError(
            f"checkpoint '{checkpoint}' is of another job: its {key} is {there!r}, this job's is {here!r}. Go on with "
            "that job's options, or start from it as --model."
        )


class JobStamp(TrainerCallback, ExportableState):
    """Writes the job's record into the trainer_state.json of every checkpoint.

    Args:
        job: the record; None where transformers makes one to be filled.
    """

    def __init__(self, job: dict[str, Any] | None = None) -> None:
        self.job = None if job is None else as_read(job, default=str)

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"job": self.job}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        stored: Any = state.stateful_callbacks  # of a checkpoint from before this callback, it lacks the name
        stored.setdefault(type(self).__name__, self.state())


def _unfinished(output: Path, *, since: Path | None) -> list[str]:
    """The checkpoints that lack their last file, and are newer than this one."""
    found = [p for p in checkpoints(output) if not (p / STATE_FILE).is_file()]
    return [p.name for p in found if since is None or _step(p) > _step(since)]


def checkpoints(output: Path) -> list[Path]:
    """All checkpoints of a directory, the newest first."""
    found = [path for path in output.glob("checkpoint-*") if path.name[11:].isdecimal()]
    return sorted(found, key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name[11:])


def _newest_whole(output: Path, needs: Needs) -> tuple[Path | None, dict[str, str]]:
    """The newest whole checkpoint of a directory, and what is wrong with each newer one, the newest first."""
    problems: dict[str, str] = {}
    for path in checkpoints(output):
        if not (path / STATE_FILE).is_file():
            continue
        wrong = problem(path, needs)
        if wrong is None:
            return path, problems
        problems[path.name] = wrong
    return None, problems


def _weights(checkpoint: Path, needs: Needs) -> list[str]:
    """The files of the weights. Raises UserError for an index that is damaged or names a missing file."""
    if needs.fsdp:
        return [_first_there(checkpoint, FSDP_WEIGHTS)]
    if needs.adapter:
        return [ADAPTER]
    return [path.name for path in weight_files(checkpoint) if path.name != ADAPTER] or [WEIGHTS]


def _first_there(checkpoint: Path, names: tuple[str, ...]) -> str:
    return next((name for name in names if (checkpoint / name).exists()), names[0])


def _damage(path: Path) -> str | None:
    """What is wrong with a file of a checkpoint: "is missing"; None if it is whole.

    Known by a file's end, and of torch's archives by the checksums that they hold.
    """
    if path.is_dir():  # of FSDP's shards, whose names have no ending
        return "is a directory" if path.suffix else _damage_of_shards(path)
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if not size:
        return "is empty"
    if path.suffix == ".safetensors":
        try:
            header, start = read_header(path)
        except UserError:
            return "is cut short"
        end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        return None if size == end else f"has {size} bytes instead of {end}"
    if path.suffix == ".json":
        try:
            parse_json(path.read_bytes())
        except ValueError:
            return "is cut short"
        return None
    if not zipfile.is_zipfile(path):  # torch's files are archives, whose index comes last
        return "is cut short"
    try:
        with zipfile.ZipFile(path) as archive:
            return "is not what was saved" if archive.testzip() else None
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError):
        return "is not what was saved"


def _damage_of_shards(folder: Path) -> str | None:
    """What is wrong with a folder of torch.distributed.checkpoint, whose `.metadata` says which bytes of which file."""
    from torch.distributed.checkpoint import FileSystemReader

    try:
        places = FileSystemReader(folder).read_metadata().storage_data or {}
        ends: dict[str, int] = {}
        for place in places.values():
            ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    except Exception:  # a pickle that is missing, cut short or of something else
        return "has no .metadata that can be read" if any(folder.iterdir()) else "is empty"
    for name, end in sorted(ends.items()):
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size is None or size < end:
            return f"lacks {name}" if size is None else f"holds {name} with {size} bytes instead of {end}"
    return None
