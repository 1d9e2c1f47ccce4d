"""Models and commands for the tests of weight-space ensembles."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.support.tiny import tiny_model
from trainer.ensemble.ensembles import main

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def make_model(
    directory: Path,
    reference: Path,
    seed: int,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    vocab_size: int | None = None,
) -> Path:
    """A tiny model of the reference's architecture and tokenizer, with other random weights."""
    vocab_size = vocab_size or len(AutoTokenizer.from_pretrained(reference))
    model = tiny_model("llama", vocab_size=vocab_size, seed=seed, scale=1.0).to(dtype)
    model.save_pretrained(directory, max_shard_size=shard_size)
    for name in TOKENIZER:
        shutil.copyfile(reference / name, directory / name)
    return directory


def arguments(mle: Path, cpo: Path, out: Path, *alphas: float | str) -> list[str]:
    words = ["--mle", str(mle), "--cpo", str(cpo), "--output_dir", str(out)]
    return [*words, "--alpha", *map(str, alphas)] if alphas else words


def ensembles(mle: Path, cpo: Path, out: Path, *alphas: float) -> list[Path]:
    assert main(arguments(mle, cpo, out, *alphas)) == 0
    return [out / f"alpha-{alpha}" for alpha in alphas]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("INFO", "WARNING"))]
    assert len(errors) == 1, errors
    return errors[0]


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
