"""evaluation/report: a report is there whole, or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data.command.errors import UserError
from data.storage import Folder
from evaluation.report import FILES, REPORT, write_report
from tests.support.reports import make_results
from tests.support.written import all_files


class FullDiskStub(Folder):
    """A disk that has no room for one file."""

    def __init__(self, path: str, full: str):
        super().__init__(path)
        self.full = full

    @contextmanager
    def _written(self, path: str, content: bytes) -> Iterator[str]:
        if path.endswith(self.full):
            raise UserError(f"cannot write '{path}': {os.strerror(errno.ENOSPC)}.")
        with super()._written(path, content) as temporary:
            yield temporary


@pytest.mark.parametrize("full", ["report.html", REPORT])
@pytest.mark.seconds
def test_no_part_of_a_report_is_there_without_the_others(full: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    results = make_results()
    with pytest.raises(UserError, match="No space left"):
        write_report(FullDiskStub(str(tmp_path), full), results)
    assert all_files(tmp_path) == {"mine.txt": b"kept"}
    write_report(Folder(str(tmp_path)), results)
    before = all_files(tmp_path)
    assert set(before) == {"mine.txt", *FILES} - {"alpha.svg", "rounds.svg"}
    results.notes.append("another")
    with pytest.raises(UserError, match="No space left"):
        write_report(FullDiskStub(str(tmp_path), full), results)
    assert all_files(tmp_path) == before


@pytest.mark.seconds
def test_a_plot_of_an_earlier_report_goes(tmp_path: Path) -> None:
    (tmp_path / "alpha.svg").touch()
    write_report(Folder(str(tmp_path)), make_results())
    assert not (tmp_path / "alpha.svg").exists()
