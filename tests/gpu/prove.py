"""`python -m tests.gpu.prove`: what only a GPU can show, part by part, each in a process of its own with a time limit.

The record, `gpu.json`, is written whole after each part, so that the same command goes on where it was stopped; so is
the section for docs/benchmarks.md, `gpu.md`. What the parts print goes to `gpu.log`.
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.command.errors import UserError, did_you_mean, exit_on_user_error
from data.command.options import load_config, option
from data.command.terminal import say
from data.command.terminated import ending_on_sigterm
from data.command.usage import answered
from data.shape import parse_json
from tests.gpu.machine import commit, machine, sources
from tests.gpu.plan import PARTS, Part
from tests.gpu.process import run_part
from tests.gpu.section import section

COMMAND = "python -m tests.gpu.prove"
USAGE = f"{COMMAND} [--out DIR] [--parts NAME ...] [--minutes X]"
ABOUT = f"""
Shows what only a GPU can: parity with the CPU, FlexAttention, bfloat16, training steps, the AN stage. Parts that have
passed here, with these sources, versions and device, are not run again; what has failed is tried again, last.
Parts: {", ".join(part.name for part in PARTS)}.
"""
LEAST_SECONDS = 20  # a part that has less is not begun


@dataclass
class ProveConfig:
    """Which parts to run, and where the record lies."""

    out: str = option("runs/gpu", "directory of gpu.json, gpu.md and gpu.log", metavar="DIR")
    parts: list[str] = option([], "these parts alone (default: all)", metavar="NAME")
    device: str = option("cuda", "cuda; or cpu: in small, which tries the program and says nothing of a GPU")
    minutes: float = option(30, "end after so many; the same command goes on")
    commit: str = option("", "what the record calls these sources where there is no git")


@exit_on_user_error
def main(argv: list[str] | None = None) -> int | None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, ProveConfig, usage=USAGE, about=ABOUT):
        return None
    config = load_config(ProveConfig, argv, command=COMMAND)
    if config.device not in ("cuda", "cpu"):
        raise UserError(f"--device must be cuda or cpu, not '{config.device}'.")
    with ending_on_sigterm():
        return prove(config, _chosen(config.parts))


def prove(config: ProveConfig, parts: Sequence[Part]) -> int:
    """Run what has not passed yet; 0 if nothing has failed, was out of time or could not be begun, else 1."""
    until = time.monotonic() + 60 * config.minutes
    small = config.device == "cpu" or os.environ.get("BENCH_SMALL", "0") not in ("", "0")
    here = {
        **machine(config.device), "extent": "small" if small else "whole", "commit": commit() or config.commit,
        "sources": sources(),
    }  # fmt: skip
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    record = read_record(folder / "gpu.json")
    outcomes: dict[str, str] = {}
    for part in sorted(parts, key=lambda part: part.name in record):
        before = record.get(part.name)
        if before and before["outcome"] == "passed" and not _differ(before["on"], here):
            say(f"{part.name}: passed on {before['at']}; kept")
            outcomes[part.name] = "passed"
            continue
        if before:
            say(f"{part.name}: once more; {_told(before, here)}")
        seconds = min(part.seconds, until - time.monotonic())
        found = _left_out(part, here)
        if found is None and seconds >= LEAST_SECONDS:
            say(f"{part.name} ...")
            found = run_part(part, config.device, folder / "gpu.log", seconds, small=small)
        if found is None or (found["outcome"] == "out of time" and seconds < part.seconds):
            say(f"{part.name}: not done, {config.minutes:g} minutes are over")
            outcomes[part.name] = "not done"
            continue
        outcomes[part.name] = found["outcome"]
        took, why = (f" in {found['seconds']:.0f} s" if "seconds" in found else ""), found.get("why")
        say(f"{part.name}: {found['outcome']}{took}" + (f": {why}" if why else ""))
        if found["outcome"] == "left out" and before and before["outcome"] == "passed":
            continue  # that it has passed elsewhere still holds
        record[part.name] = {**found, "on": here, "at": time.strftime("%Y-%m-%d %H:%M")}
        _write(folder / "gpu.json", json.dumps({"parts": record}, indent=1) + "\n")
        _write(folder / "gpu.md", section(record))
    said = ", ".join(f"{list(outcomes.values()).count(name)} {name}" for name in dict.fromkeys(outcomes.values()))
    say(f"{said}: {folder}/gpu.md, {folder}/gpu.json")
    return 0 if set(outcomes.values()) <= {"passed", "left out"} else 1


def read_record(path: Path) -> dict[str, Any]:
    """Parts by name, as they were recorded; none where there is no file."""
    if not path.exists():
        return {}
    try:
        return dict(parse_json(path.read_text())["parts"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is no record of {COMMAND} ({error}). Give another --out.") from error


def _chosen(names: Sequence[str]) -> list[Part]:
    known = {part.name: part for part in PARTS}
    for name in names:
        if name not in known:
            raise UserError(f"there is no part '{name}'.{did_you_mean(name, known)} There are {', '.join(known)}.")
    return [part for part in PARTS if part.name in names or not names]


def _differ(then: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """In what a part's machine and sources were others; a commit of the same sources is none."""
    return [key for key in here if key != "commit" and then.get(key) != here[key]]


def _told(before: dict[str, Any], here: dict[str, Any]) -> str:
    """What is there of a part that runs again."""
    told = f"{before['outcome']} on {before['at']}"
    if differ := _differ(before["on"], here):
        there = f"{before['on']['device']}, commit {before['on']['commit'] or 'unknown'}"
        told += f", with other {' and '.join(differ)} ({there})"
    return told


def _left_out(part: Part, here: dict[str, Any]) -> dict[str, Any] | None:
    """The outcome of a part that needs what this machine has not; None of others."""
    absent = [name for name in part.needs if importlib.util.find_spec(name) is None]
    why = f"needs {' and '.join(absent)}"
    if not absent and here["extent"] == "whole" and here["gibibytes"] < part.gibibytes:
        why = f"needs about {part.gibibytes} GiB of GPU memory, of {here['gibibytes']:.0f}"
    elif not absent:
        return None
    return {"outcome": "left out", "why": why}


def _write(path: Path, text: str) -> None:
    whole = path.with_name(f"{path.name}.tmp")
    whole.write_text(text)
    whole.replace(path)


if __name__ == "__main__":
    sys.exit(main())
