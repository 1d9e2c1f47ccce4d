"""Experiment trackers of `--report_to`, for the stages that are no training: accelerate's, which TRL uses in stage 2.

accelerate imports torch. Both are imported when a tracker is asked for, and only then.
"""

import contextlib
import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from data.command.entries import flat
from data.command.errors import UserError, did_you_mean, first_line
from data.command.options import chosen_names, resolve_path
from data.command.privacy import scrub, without_secrets

log = logging.getLogger(__name__)

NONE = "none"
# Each with the package that has it.
PACKAGES = {"wandb": "wandb", "trackio": "trackio", "tensorboard": "tensorboard", "mlflow": "mlflow"}
HELP = f"trackers of the run's numbers: {', '.join(PACKAGES)}, or {NONE}"
# Where the runs are found in a tracker.
PROJECT = "contrastive-preference-optimization"
TENSORBOARD_VARIABLE = "TENSORBOARD_LOGGING_DIR"
# What MLflow, the strictest, takes in a name beside the slash between its parts, on every system.
NOT_IN_NAMES = re.compile(r"[^\w .-]")
LONGEST_NAME = 250
LONGEST_SETTING = 6000

Values = Mapping[str, float | str | None]


def check_trackers(names: Sequence[str]) -> list[str]:
    """The trackers that --report_to names, each once.

    Raises:
        UserError: there is no such tracker, or it is not installed.
    """
    chosen = list(dict.fromkeys(chosen_names(names)))
    if chosen == [NONE]:
        return []
    for name in chosen:
        if name not in PACKAGES:
            known = [*PACKAGES, NONE]
            alone = f"'{NONE}' stands alone" if name == NONE else f"unknown tracker '{name}'"
            raise UserError(f"--report_to: {alone}.{did_you_mean(name, known)} Use some of {', '.join(known)}.")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"--report_to {name} needs a package that is not installed: pip install {PACKAGES[name]}.")
    return chosen


class Trackers:
    """The trackers of one run. What one of them raises once it has started is a warning, and it is told no more.

    Args:
        names: that have passed `check_trackers`.
        out: what the run makes; its last part names the run. TensorBoard's files lie in $TENSORBOARD_LOGGING_DIR, or
            beside it in OUT-tensorboard.
        config: the run's settings, for the tracker's page.

    Raises:
        UserError: a tracker does not start.
    """

    def __init__(self, names: Sequence[str], out: str, config: Mapping[str, Any]):
        self._trackers: list[Any] = []
        self._step = 0
        where = _tensorboard_folder(out) if "tensorboard" in names else ""
        for name in names:
            try:
                with _said_to_people():
                    tracker = _make(name, out, where)
                    tracker.start()
                    tracker.store_init_configuration(_plain(config))
            except Exception as error:
                self.finish()
                why = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
                raise UserError(
                    f"--report_to {name}: it does not start: {why}. Correct its settings, or leave it out."
                ) from error
            self._trackers.append(tracker)

    def report(self, values: Values, step: int | None = None) -> None:
        """Log numbers and words as a step, the next one where none is given; None is left out."""
        self._step = self._step + 1 if step is None else step
        said = {valid_name(key): value for key, value in values.items() if value is not None}
        for tracker in list(self._trackers):
            self._try(tracker, lambda tracker=tracker: tracker.log(said, step=self._step))

    def finish(self) -> None:
        """Write what is left and end the run in each tracker."""
        for tracker in list(self._trackers):
            with _said_to_people():
                # accelerate ends trackio's run, and trackio would end it again, aloud, with the process.
                self._try(tracker, sys.modules["trackio"].finish if tracker.name == "trackio" else tracker.finish)
        self._trackers = []

    def _try(self, tracker: Any, what: Any) -> None:
        try:
            what()
        except Exception as error:
            self._trackers.remove(tracker)
            log.warning("tracker %s has failed and is told no more: %s", tracker.name, first_line(error))


def valid_name(text: str) -> str:
    """The name under which trackers are told of something: itself, or the nearest that all of them take.

    MLflow takes letters, digits, _, -, . and blanks, in a relative path without "." or ".." of at most 250 characters.
    """
    parts = [NOT_IN_NAMES.sub("_", part) for part in text.split("/") if part]
    return "/".join("_" if part in (".", "..") else part for part in parts)[:LONGEST_NAME].rstrip("/") or "_"


_running: Trackers | None = None


@contextmanager
def reporting_to(names: Sequence[str], out: str, config: Mapping[str, Any]) -> Iterator[None]:
    """Let `report` reach the trackers of a run while the block lasts; see `Trackers`."""
    global _running
    if not names:
        yield
        return
    _running = Trackers(names, out, config)
    try:
        yield
    finally:
        trackers, _running = _running, None
        trackers.finish()


def reports() -> bool:
    """Whether anybody is told."""
    return _running is not None


def report(values: Values, step: int | None = None) -> None:
    """Tell the trackers of the run that is under way in this process, if there are any.

    Args:
        step: what the values are of; by default the next one of this process.
    """
    if _running is not None:
        _running.report(values, step)


def _make(name: str, out: str, tensorboard_folder: str) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

    PartialState(cpu=True)  # without it accelerate's loggers raise; a driver has no use for a GPU
    if not filter_trackers([name], tensorboard_folder or "."):
        raise UserError(f"accelerate finds no {name}")
    run = os.path.basename(out.rstrip("/"))
    tracker = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        return tracker(run, tensorboard_folder)
    if name == "mlflow":
        return tracker(PROJECT, run_name=run)
    more = {"auto_log_cpu": False, "auto_log_gpu": False, "embed": False} if name == "trackio" else {}
    return tracker(PROJECT, name=run, **more)


def _plain(config: Mapping[str, Any]) -> dict[str, str | int | float]:
    """What every tracker takes, numbers and texts under dotted names; no keys of servers and no home directories."""
    found = {key: value for key, value in flat(without_secrets(dict(config))).items() if value is not None}
    texts = {key: value if isinstance(value, int | float | str) else json.dumps(value) for key, value in found.items()}
    return {
        valid_name(key): scrub(value)[:LONGEST_SETTING] if isinstance(value, str) else value
        for key, value in texts.items()
    }


def _tensorboard_folder(out: str) -> str:
    if folder := os.environ.get(TENSORBOARD_VARIABLE):
        return resolve_path(folder)
    if "://" in out:
        raise UserError(
            f"--report_to tensorboard with --out '{out}': say in ${TENSORBOARD_VARIABLE} where its files go."
        )
    return f"{resolve_path(out).rstrip('/')}-tensorboard"


@contextmanager
def _said_to_people() -> Iterator[None]:
    """What a tracker says of itself, such as the address of its page, is no outcome of the command: on stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
