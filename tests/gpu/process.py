"""One part in a process of its own, with a limit of time: `python -m tests.gpu.process FUNCTION RESULT DEVICE ...`."""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from data.command.privacy import scrub
from data.shape import parse_json
from tests.gpu.plan import Part
from tests.support.commands import ROOT

LAST_LINES = 20


def run_part(part: Part, device: str, log: Path, seconds: float, *, small: bool) -> dict[str, Any]:
    """Run a part; what it prints goes to the end of `log`.

    Args:
        seconds: after which it is ended, with all that it has started.

    Returns:
        "outcome": passed, failed or out of time; "seconds"; "result", where there is one; "why" it has not passed and
        its "last_lines".
    """
    # One GPU: transformers would spread over several.
    visible = "" if device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible, "BENCH_SMALL": "1" if small else "0"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory() as folder, log.open("ab") as output:
        result = Path(folder) / "result.json"
        words = [sys.executable, "-m", "tests.gpu.process", part.function, str(result), device, *part.arguments]
        output.write(f"== {part.name}\n".encode())
        output.flush()
        begin, started = output.tell(), time.monotonic()
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):  # also what a part has left behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        found: dict[str, Any] = {"seconds": round(time.monotonic() - started, 1)}
        if code == 0:
            found["result"] = parse_json(result.read_text())
            outcome, why = "failed", _broken(found["result"].get("checks", []))
            if not why:
                return {"outcome": "passed", **found}
        elif code is None:
            outcome, why = "out of time", f"not done after {seconds:.0f} s"
        else:
            outcome, why = "failed", f"ended by signal {-code}" if code < 0 else f"ended with status {code}"
        return {"outcome": outcome, "why": why, "last_lines": _last_lines(log, begin), **found}


def _broken(checks: list[dict[str, Any]]) -> str:
    """Which figures are beyond their bounds: the first of them, and how many."""
    broken = [check for check in checks if not check["holds"]]
    if not broken:
        return ""
    what, sense, bound = (broken[0][key] for key in ("what", "sense", "bound"))
    value = "not finite" if broken[0]["value"] is None else f"{broken[0]['value']:.3g}"
    return f"{len(broken)} of {len(checks)} beyond bounds: {what} is {value}, {sense} {bound:g}"


def _last_lines(log: Path, begin: int) -> list[str]:
    said = log.read_bytes()[begin:].decode(errors="replace").replace("\r", "\n")
    return [scrub(line)[:300] for line in said.splitlines() if line.strip()][-LAST_LINES:]


def _main(function: str, result: str, *arguments: str) -> None:
    module, name = function.split(":")
    found = getattr(importlib.import_module(module), name)(*arguments)
    whole = Path(f"{result}.tmp")
    whole.write_text(json.dumps(found, allow_nan=False))
    whole.rename(result)


if __name__ == "__main__":
    _main(*sys.argv[1:])
