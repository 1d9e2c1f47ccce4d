"""Running the steps of a study: two at a time where each keeps one core busy, each logged and timed, none twice."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data.command.errors import UserError
from data.shape import parse_json
from evaluation.report.files import read_report
from negatives_gen.strategies.rn import shares
from recipes.study.choice import at_an_end, choose, errors_of, values_of
from recipes.study.design import Study
from recipes.study.records import Records, comparison_of
from recipes.study.steps import Step, Steps

log = logging.getLogger(__name__)

CORES = 2
SETTINGS = {
    "OMP_NUM_THREADS": "1",  # models as small as these gain nothing from a second thread, and wait for it
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
LAST_LINES = 5


@dataclass(frozen=True)
class Spent:
    """What a step took, in seconds; processor time without that of Ray's workers."""

    wall: float
    processor: float


def tokens_read(state: Path) -> dict[str, int]:
    """Tokens that a training's forward passes read, and its steps, of its trainer_state.json."""
    found = parse_json(state.read_bytes())
    return {"tokens": found["num_input_tokens_seen"], "steps": found["global_step"]}


def validation_losses(state: Path) -> dict[str, float]:
    """Step -> validation loss, of a training's trainer_state.json; none where nothing was watched."""
    logs = parse_json(state.read_bytes())["log_history"]
    return {str(entry["step"]): entry["eval_loss"] for entry in logs if "eval_loss" in entry}


def set_counts(manifest: Path) -> dict[str, Any]:
    """Groups of a set, and the tokens that its strategies drew from the reference's distribution.

    Of a resumed negative that is the tail behind what is kept of the truth, of a meanfield one the positions that are
    redrawn, once a round; both are reckoned from the shares, as shards do not count them. Other strategies than these
    draw all that their negatives have, or nothing.
    """
    found, tokens = parse_json(manifest.read_bytes()), Counter[str]()
    for shard in found["shards"]:
        tokens.update(shard["tokens"])
    groups = found["counts"]["rows_written"]
    sampled = {}
    for name, settings in found["job"]["strategies"].items():
        positions = settings["count"] * (tokens["response"] - groups)  # of the truths, their ends apart
        if name == "an":
            sampled[name] = tokens[name]
        elif name == "rn":
            sampled[name] = round(tokens[name] - sum(shares(settings["rn_share"])) / 2 * positions)
        elif name == "mn":
            sampled[name] = round(settings["mn_share"] * settings.get("mn_rounds", 1) * positions)
    return {"groups": groups, "sampled": sampled}


# Kind of step -> where records keep what it says beside its result, and how that is read of the file it writes last.
DETAILS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "train": ("training", tokens_read),
    "set": ("sets", set_counts),
    "reference": ("references", validation_losses),
}


class Runner(Protocol):
    """What runs steps to their end."""

    def __call__(self, step: Step) -> Spent:
        """Run a step and say what it took. Raises UserError where it fails."""
        ...

    def end(self) -> None:
        """Ask all that runs to end."""
        ...


class Processes:
    """Steps as processes of their own, whose output goes to FOLDER/logs; all are ended together."""

    def __init__(self, folder: Path):
        self.logs = folder / "logs"
        self.running: set[int] = set()

    def __call__(self, step: Step) -> Spent:
        self.logs.mkdir(parents=True, exist_ok=True)
        path = self.logs / f"{step.name.replace(' ', '-')}.log"
        settings = {**os.environ, **SETTINGS}
        began = time.monotonic()
        with path.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *step.words], stdout=output, stderr=subprocess.STDOUT, env=settings
            )
            self.running.add(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.running.discard(process.pid)
        if process.returncode or not step.done.is_file():
            last = "\n".join(path.read_text(errors="replace").splitlines()[-LAST_LINES:])
            raise UserError(f"step '{step.name}' failed; the end of {path}:\n{last}")
        return Spent(time.monotonic() - began, usage.ru_utime + usage.ru_stime)

    def end(self) -> None:
        """Ask all that runs to end; what it has done stays."""
        for process in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)


@dataclass
class Progress:
    """A study on its way: what is known, where it is kept, and what runs.

    Attributes:
        path: of the records.
        only: hypotheses and rows; none: all.
    """

    study: Study
    folder: Path
    path: Path
    records: Records
    only: Sequence[str] = ()

    def steps(self, running: Collection[str] = ()) -> list[Step]:
        """The steps that are left, as far as the chosen rates are known; what a finished one says is taken first.

        Args:
            running: names of steps that run: left even if their last file is there, which may be half written.
        """
        while True:
            found = Steps(self.study, self.folder, self.records, self.records.rates).of(self.only)
            done = [step for step in found if step.name not in running and step.done.is_file()]
            news = [self.take(step) for step in done]
            if not any(news):
                return [step for step in found if step not in done]

    def take(self, step: Step) -> bool:
        """Keep what a finished step says; returns whether that was new and makes other steps known."""
        kind, *names = step.name.split(" ")
        if kind == "choose" and names[0] not in self.records.choices:
            found = read_report(str(step.done.parent))
            choice = choose(values_of(found), self.study.choose_by, errors_of(found))
            self.records.choices[names[0]] = choice
            end = ", an end of what was tried" if at_an_end(choice) else ""
            log.info("%s: learning rate %g%s", names[0], choice["rate"], end)
        elif kind == "evaluate" and not self.records.has(names[0], names[1], int(names[2])):
            results = read_report(str(step.done.parent))
            self.records.comparisons.append(comparison_of(results, names[0], names[1], int(names[2])))
        elif kind in DETAILS and step.name not in (kept := getattr(self.records, DETAILS[kind][0])):
            kept[step.name] = DETAILS[kind][1](step.done)
        else:
            return False
        self.records.write(self.path)
        return kind not in DETAILS

    def run(self, runner: Runner, until: float | None = None) -> list[Step]:
        """Run what is left, CORES at a time; after `until` (time.monotonic) no step is begun.

        Returns:
            The steps that are left.

        Raises:
            UserError: a step failed. Those that ran beside it are waited for.
        """
        running: dict[Future[Spent], Step] = {}
        with ThreadPoolExecutor(CORES) as pool:
            try:
                while True:
                    left = self.steps([step.name for step in running.values()])
                    if until is None or time.monotonic() < until:
                        for step in startable(left, list(running.values())):
                            log.info("%s: %s (%d left)", self.study.name, step.name, len(left))
                            running[pool.submit(runner, step)] = step
                    if not running:
                        return left
                    ended, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        self._ended(running.pop(future), future.result())
            except (KeyboardInterrupt, SystemExit):
                runner.end()
                raise

    def _ended(self, step: Step, spent: Spent) -> None:
        self.records.steps[step.name] = {"wall": round(spent.wall, 1), "processor": round(spent.processor, 1)}
        self.records.write(self.path)
        self.take(step)


def startable(left: Sequence[Step], running: Sequence[Step]) -> list[Step]:
    """The steps that may begin beside those that run: all they need is there, and there are cores for them."""
    waiting = {step.name for step in left}
    free, chosen = CORES - sum(step.cores for step in running), []
    for step in left:
        if step in running or waiting.intersection(step.needs):
            continue
        if step.cores <= free:
            chosen.append(step)
            free -= step.cores
        elif step.cores == CORES:
            break  # else those of one core would hold it up for ever
    return chosen
