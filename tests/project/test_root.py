"""Every command counts relative paths from $NEGATIVES_GEN_ROOT where it is set: those of models and data too."""

import importlib
from pathlib import Path

import pytest

# Module of a command, what of it computes, and a command line.
COMMANDS = [
    ("trainer.run", "train", ["--model", "m", "--output_dir", "out", "--shards", "set"]),
    ("trainer.ensemble.ensembles", "write_ensembles", ["--mle", "a", "--cpo", "b", "--output_dir", "out"]),
    ("evaluation.run", "evaluate", ["--model", "x=m", "--dataset", "facts", "--out", "out"]),
]


@pytest.mark.parametrize(("module", "computes", "words"), COMMANDS, ids=[name for name, _, _ in COMMANDS])
def test_a_command_that_takes_paths_as_they_are_works_at_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, computes: str, words: list[str]
) -> None:
    command, seen = importlib.import_module(module), []
    monkeypatch.setattr(command, computes, lambda *_: seen.append(Path.cwd()) or "")
    (tmp_path / "root").mkdir()
    (tmp_path / "options.yaml").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEGATIVES_GEN_ROOT", raising=False)
    assert command.main(words) == 0
    monkeypatch.setenv("NEGATIVES_GEN_ROOT", str(tmp_path / "root"))
    assert command.main([*words, "--config", "options.yaml"]) == 0  # which is found from where the command was called
    assert seen == [tmp_path, tmp_path / "root"]


def test_a_root_that_is_no_directory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, words = COMMANDS[0]
    monkeypatch.setenv("NEGATIVES_GEN_ROOT", "/nowhere/at/all")
    assert importlib.import_module(module).main(words) == 2
    assert "$NEGATIVES_GEN_ROOT is '/nowhere/at/all', which cannot be entered: No such file" in capsys.readouterr().err
