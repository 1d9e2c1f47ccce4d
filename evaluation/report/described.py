"""What was evaluated, in words: the job and the environment of a report as lines of "key: value"."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from evaluation.metrics import known

SHA256 = re.compile(r"[0-9a-f]{64}")
SHORT = 16  # digits of a hash; report.json has them all
LONGEST_LIST = 12
# Shown elsewhere, or no part of the set-up.
ELSEWHERE = ("models", "sweep")


def summary(job: Mapping[str, Any]) -> str:
    """A job in one line: how many prompts of what, and what else metrics are of."""
    data = job.get("data") or {}
    used, examples = data.get("used"), data.get("examples")
    prompts = f"{used:,}" + (f" of {examples:,}" if examples not in (None, used) else "") if used is not None else "The"
    line = f"{prompts} prompts of {data.get('name') or 'an unrecorded data set'}"
    if data.get("split"):
        line += f", split {data['split']}"
    sweep, measured = job.get("sweep") or {}, data.get("measured")
    if sweep.get("validation_prompts") is not None and measured is not None:
        line += f": {measured:,} that the tables are of, {sweep['validation_prompts']:,} to choose alpha on"
    return "; ".join([line, *filter(None, (metric.summary_of(job) for metric in known()))]) + "."


def models(job: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """The job's models: name, path, hash of the weights, hash of the tokenizer."""
    return [
        (name, str(model.get("path", "")), spoken(model.get("weights_sha256")), spoken(model.get("tokenizer_sha256")))
        for name, model in (job.get("models") or {}).items()
    ]


def setup(job: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The job's set-up, as dotted keys with their values in words."""
    rest = {key: value for key, value in job.items() if key not in ELSEWHERE}
    return [(key, spoken(value)) for key, value in leaves(rest) if value is not None]


def versions(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions of packages, this project's, and the git commit."""
    found = [(name, str(version)) for name, version in (environment.get("packages") or {}).items()]
    ours = [("this project", str(environment["version"]))] if environment.get("version") else []
    return [*found, *ours, ("git commit", spoken(environment.get("git_commit")))]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in nested dicts; lists are values."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def spoken(value: Any) -> str:
    """A value of a job in a line's length: hashes by their first digits, long lists by their beginning."""
    if value is None or value in ("", [], {}):
        return "none"
    if isinstance(value, str):
        return value[:SHORT] if SHA256.fullmatch(value) else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if isinstance(value, list | tuple):
        shown = ", ".join(spoken(item) for item in value[:LONGEST_LIST])
        return shown + (f" and {len(value) - LONGEST_LIST} more" if len(value) > LONGEST_LIST else "")
    return json.dumps(value)
