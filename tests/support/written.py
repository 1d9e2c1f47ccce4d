"""A negative set of three groups in three shards, written without a model."""

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.schema import Candidate, Group, Reject, example_id
from data.set_writer import NegativeSetWriter
from data.shape import parse_json

SIGNALS = ["embedding", "rouge"]


def job_of(**counts: int) -> dict[str, Any]:
    """A job with so many negatives of each strategy, of a model that is nowhere."""
    return {
        "model": {"name": "ref", "weights_sha256": "a" * 64, "scorer_dtype": "float32"},
        "tokenizer": {"sha256": "b" * 64},
        "seed": 1,
        "strategies": {name: {"count": count} for name, count in counts.items()},
    }


JOB = job_of(an=1, bn=1)


def candidate(strategy: str, ids: list[int], **values: Any) -> Candidate:
    return Candidate(strategy, ids, f"text {ids}", similarity={"embedding": 0.5, "rouge": -0.25}, **values)


def group(number: int) -> Group:
    """A group with sampled and unsampled negatives; the floats are exact in float32."""
    negatives = [
        candidate("an", [number, 2], finish_reason="length", sampler_logp=-1.5, reference_logp=-1.25, seed=2**40),
        candidate("bn", [3], source_id="f" * 32, reference_logp=-8.0),
    ]
    prompt, response = f"prompt {number} é", "response\n"
    ids = [number, 5, 6]
    split = "test" if number == 3 else "train"
    return Group(
        *(example_id(prompt, response), prompt, response, ids, [7, 0], split, -2.5),
        in_support={1: True, 2: False}.get(number),
        response_embedding=[0.5, -0.5],
        negatives=negatives,
        query=f"asked {number}",
    )


SHARDS = [[group(1), group(2)], [group(3)], []]


REJECTS = [[Reject("r1", "empty response", "", "p")], [], [Reject("r2", "duplicate", "d", "q")]]


def write_part(writer: NegativeSetWriter, index: int) -> None:
    writer.write_shard(index, SHARDS[index], REJECTS[index], seconds={"sample": 1.23456}, layout="packed")


def writer(path: Path) -> NegativeSetWriter:
    return NegativeSetWriter(str(path), JOB, SIGNALS)


def write_set(path: str) -> NegativeSetWriter:
    writer = NegativeSetWriter(path, JOB, SIGNALS)
    assert writer.begin()
    for index in (2, 0, 1):
        write_part(writer, index)
    writer.finish(len(SHARDS))
    return writer


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def all_files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def unclaimed_files(path: Path) -> dict[str, bytes]:
    """All but who owns the directory."""
    return {name: content for name, content in all_files(path).items() if not name.startswith(".claim/")}


def put_no_file(kind: str, path: Path) -> None:
    """Put what is no file at a path: a folder, a named pipe, a link to itself or to nowhere."""
    if kind == "folder":
        path.mkdir()
        (path / "file").touch()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name if kind == "link to itself" else "nowhere")


def unfinished(path: Path, shards: list[int]) -> NegativeSetWriter:
    """A job that has made these shards and goes on."""
    driver = writer(path)
    driver.begin()
    for index in shards:
        write_part(driver, index)
    return driver


def go_on(path: Path) -> list[int]:
    """Run the command again; returns the shards that it made."""
    driver = writer(path)
    if not driver.begin():
        return []
    todo = [index for index in range(len(SHARDS)) if index not in driver.finished()]
    for index in todo:
        write_part(driver, index)
    driver.finish(len(SHARDS))
    return todo


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> step and value, of TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def trackio_run(folder: Path, run: str) -> list[tuple[int, dict[str, Any]]]:
    """Step and values, of what trackio keeps in a folder of one project."""
    (found,) = folder.glob("*.db")
    query = "SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY step"
    with contextlib.closing(sqlite3.connect(found)) as connection:
        return [(step, parse_json(metrics)) for step, metrics in connection.execute(query, (run,))]
