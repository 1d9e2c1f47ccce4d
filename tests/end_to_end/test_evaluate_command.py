"""`python -m evaluation.run`: one clear line for wrong input."""

from pathlib import Path

import pytest

import evaluation.run
from tests.support.command_lines import refused


def test_evaluation_refuses_a_model_without_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(evaluation.run.main, ["--model", "cpo=", "--dataset", "facts", "--out", str(tmp_path)], capsys)
    assert "NAME=PATH" in line
