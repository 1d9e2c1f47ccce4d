"""Command lines of each room, and what a command says that refuses one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Main = Callable[[list[str] | None], int]


def refused(main: Main, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must refuse: exit code 2 and exactly one line on stderr; returns the line."""
    capsys.readouterr()
    assert main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def generate(reference: Path, out: Path, /, **changes: str) -> list[str]:
    options = {"model": str(reference), "dataset": "facts", "embedder": "reference", "out": str(out), **changes}
    return [word for key, value in options.items() for word in (f"--{key}", value)]


def train(reference: Path, shards: Path, out: Path, *more: str) -> list[str]:
    return ["--model", str(reference), "--shards", str(shards), "--output_dir", str(out), "--use_cpu", "true", *more]


def train_mle(model: Path, dataset: str, out: Path, split: str = "train") -> list[str]:
    options = {"objective": "mle", "dataset": dataset, "split": split, "model": str(model), "output_dir": str(out)}
    return [word for key, value in options.items() for word in (f"--{key}", value)]


def evaluate(model: Path, dataset: str, out: Path, split: str = "test") -> list[str]:
    return ["--model", f"m={model}", "--dataset", dataset, "--split", split, "--limit", "8", "--out", str(out)]


def rows(path: Path, *records: dict) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)
