"""Two evaluations do not write into one --out."""

from pathlib import Path

import pytest

from data.claim import claimed
from evaluation.run import main


def test_a_second_evaluation_is_refused_while_the_first_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--model", f"m={tmp_path}/no-model", "--dataset", "facts", "--out", str(out)]
    with claimed(str(out)):
        assert main(words) == 2
        assert f"'{out}' is in use by another run (process " in capsys.readouterr().err
    assert main(words) == 2
    assert "in use" not in capsys.readouterr().err
    assert not out.exists()
