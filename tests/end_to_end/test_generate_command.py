"""`python -m negatives_gen` without a job: its help, and one clear line for wrong input with nothing written."""

from pathlib import Path

import pytest

import negatives_gen.__main__
from tests.support.command_lines import generate, refused
from tests.support.commands import run_command


def test_generate_help_names_every_key() -> None:
    text = run_command("negatives_gen", "--help").stdout
    for key in [
        "model",
        "dataset",
        "task",
        "split",
        "limit",
        "out",
        "strategies",
        "top_k",
        "temperature",
        "max_new_tokens",
        "embedder",
        "groups_per_shard",
        "seed",
        "num_engines",
        "engine.",
    ]:
        assert f"--{key}" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "/no/such.jsonl"}, ("/no/such.jsonl", "does not exist")),
        ({"topk": "50"}, ("unknown key 'topk'", "top_k")),
        ({"strategies": "ann=11"}, ("unknown strategy 'ann'", "'an'")),
        ({"strategies": "an=0"}, ("an=0", "at least 1")),
        ({"strategies": "un=1"}, ("--api.model",)),
        ({"out": "memory://set", "push_to_hub": "me/set"}, ("only a set on a disk", "memory://set")),
        ({"split": "validation"}, ("unknown split 'validation'", "train, test, all")),
        ({"task": "doly"}, ("unknown task 'doly'", "dolly")),
        ({"limit": "many"}, ("'limit'", "whole number", "'many'")),
        ({"temperature": "0"}, ("--temperature", "above 0")),
        ({"embedder": "/no/such/embedder"}, ("/no/such/embedder", "cannot be reached")),
    ],
)
def test_generate_refuses_wrong_options_in_one_line(
    change: dict[str, str],
    said: tuple[str, ...],
    reference: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(negatives_gen.__main__.main, generate(reference, tmp_path / "out", **change), capsys)
    assert all(piece in line for piece in said), line
    assert not (tmp_path / "out").exists()


def test_generate_refuses_a_directory_that_holds_another_job(
    reference: Path, negative_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p.name: p.read_bytes() for p in negative_set.iterdir()}
    line = refused(negatives_gen.__main__.main, generate(reference, negative_set), capsys)
    assert "already holds another job" in line
    assert {p.name: p.read_bytes() for p in negative_set.iterdir()} == before
