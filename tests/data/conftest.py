"""Fixtures that tests of the contract share."""

from pathlib import Path

import pytest

from tests.support.written import all_files, write_set


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The directory of a finished set of three shards."""
    write_set(str(tmp_path / "set"))
    return tmp_path / "set"


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, bytes]:
    """The files of a set of three shards that nothing happened to."""
    write_set(str(tmp_path / "expected"))
    return all_files(tmp_path / "expected")
