"""data/command/options.py: where the paths of options count from."""

from pathlib import Path

import pytest

from data.command.errors import UserError
from data.command.options import output_root, resolve_path


def test_relative_paths_count_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEGATIVES_GEN_ROOT", raising=False)
    assert output_root() == tmp_path
    assert resolve_path("runs/a") == str(tmp_path / "runs/a")


def test_a_root_counts_wherever_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The driver of `docker compose run submit` runs where the head was started: in /app, which no other node sees."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEGATIVES_GEN_ROOT", "/elsewhere")
    assert output_root() == Path("/elsewhere")
    assert resolve_path("runs/a") == "/elsewhere/runs/a"
    monkeypatch.setenv("NEGATIVES_GEN_ROOT", "not/absolute")
    with pytest.raises(UserError, match=r"\$NEGATIVES_GEN_ROOT is 'not/absolute'"):
        resolve_path("runs/a")


@pytest.mark.parametrize("path", ["/abs/dir", "s3://bucket/key", "memory://x"])
def test_absolute_paths_and_urls_stay_as_they_are_even_inside_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
):
    inside_a_ray_job(tmp_path, monkeypatch)
    assert resolve_path(path) == path


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_path("~/runs/a") == "/home/someone/runs/a"


def test_inside_a_ray_job_relative_paths_count_from_the_given_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inside_a_ray_job(tmp_path, monkeypatch)
    monkeypatch.setenv("NEGATIVES_GEN_ROOT", "/shared/dir")
    assert output_root() == Path("/shared/dir")
    assert resolve_path("runs/a") == "/shared/dir/runs/a"


def test_inside_a_ray_job_without_a_root_relative_paths_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inside_a_ray_job(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="NEGATIVES_GEN_ROOT=/shared/dir"):
        resolve_path("runs/a")


def inside_a_ray_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "runtime_resources" / "working_dir_files" / "copy"
    directory.mkdir(parents=True)
    monkeypatch.chdir(directory)
    monkeypatch.delenv("NEGATIVES_GEN_ROOT", raising=False)
