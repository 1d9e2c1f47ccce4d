"""Fixtures that tests of the contract share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets.config
import pytest

from data.sources.examples import Example, open_source
from tests.support.source_rows import TASK, lines
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


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of `datasets` of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def read(tmp_path: Path, own_cache: None) -> Any:
    """The examples of some rows, in their order in the file."""

    def examples(
        rows: Sequence[dict[str, Any]], task: str = TASK, columns: Any = (), streaming: bool = True, **options: Any
    ) -> list[Example]:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(lines(rows))
        places = columns.split(",") if isinstance(columns, str) else columns
        return list(open_source(str(path), task, streaming=streaming, columns=places, **options))

    return examples
