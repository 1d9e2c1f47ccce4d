"""Two evaluations do not write into one --out, and what a killed one left there is not in the way."""

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


@pytest.mark.parametrize("there", [[], ["store", "evaluation_job.json"], ["evaluation_job.json", "report.md"]])
def test_half_a_file_that_a_killed_evaluation_left_is_removed(
    there: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in there:
        (out / name).mkdir() if name == "store" else (out / name).write_bytes(b"{}")
    for name in (".tmp-0123", ".tmp-4567"):  # a report is several files
        (out / name).write_bytes(b"half")
    assert main(["--model", f"m={tmp_path}/no-model", "--dataset", "facts", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "no-model" in said
    assert "already holds other files" not in said
    assert sorted(path.name for path in out.iterdir()) == sorted(there)


def test_half_a_file_beside_files_of_others_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("thesis.txt", ".tmp-0123"):
        (tmp_path / name).write_bytes(b"mine")
    assert main(["--model", f"m={tmp_path}/no-model", "--dataset", "facts", "--out", str(tmp_path)]) == 2
    assert f"output directory '{tmp_path}' already holds other files." in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.txt", ".tmp-0123"}
