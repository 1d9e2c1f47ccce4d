"""evaluation/report: a report is there whole, or not at all."""

from pathlib import Path

import pytest

from data.command.errors import UserError
from data.storage import Folder
from evaluation.report import FILES, REPORT, write_report
from tests.evaluation.test_report import make_results


class FullDiskStub(Folder):
    """A disk that is full for one file."""

    def __init__(self, path: str, full: str):
        super().__init__(path)
        self.full = full

    def write(self, name: str, content: bytes) -> None:
        if name == self.full:
            raise UserError(f"cannot write '{name}': No space left on device.")
        super().write(name, content)


@pytest.mark.parametrize("full", ["report.html", REPORT])
def test_no_part_of_a_report_stays_that_cannot_be_written(full: str, tmp_path: Path) -> None:
    """Nor an earlier one, which would be of other numbers than the tables beside it."""
    write_report(Folder(str(tmp_path)), make_results())
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="No space left"):
        write_report(FullDiskStub(str(tmp_path), full), make_results())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    write_report(Folder(str(tmp_path)), make_results())
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", *FILES} - {"alpha.svg"}
