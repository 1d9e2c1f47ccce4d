"""The commands as people use them: help at once, and one clear line for wrong input with nothing half-written."""

import importlib
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import data.blank
import evaluation.__main__
import evaluation.run
import negatives_gen.__main__
import trainer.__main__
import trainer.run
from data.command import console
from data.sources.tasks import TASK_HELP, TASKS
from tests.support.command_lines import Main, evaluate, generate, refused, rows, train, train_mle
from tests.support.commands import ROOT, fork_command, run_command

VERBS = tuple(f"negatives_gen {verb}" for verb in negatives_gen.__main__.VERBS)
COMMANDS = (
    *("negatives_gen", *VERBS, "trainer", "trainer.run", "trainer.ensemble"),
    *("evaluation", "evaluation.run", "evaluation.compare", "data.blank"),
)
COLUMNS = 60


@pytest.mark.seconds
@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_in_under_a_second(command: str) -> None:
    """Processor time, not wall time: the machine is shared, the promise is about what we import."""
    text, seconds = timed([sys.executable, "-m", *command.split(), "--help"])
    assert f"usage: python -m {command}" in text
    assert "  --config FILE.yaml\n" in text
    assert max(map(len, text.splitlines())) <= COLUMNS
    metavars = re.findall(r"^  --(?:\w+\.)*(\w+) ([A-Z_]+)$", text, re.MULTILINE)
    assert [name for name, metavar in metavars if name.upper() == metavar] == []
    assert seconds < 1.0


@pytest.mark.seconds
@pytest.mark.parametrize("command", ["", *console.commands()])
def test_the_console_script_answers_in_under_a_second(command: str) -> None:
    text, seconds = timed([sys.executable, "-m", "data.command.console", *command.split(), "--help"])
    assert text.startswith("usage: python -m " if command else "usage: cpo COMMAND ...")
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert seconds < 1.0


def timed(words: list[str]) -> tuple[str, float]:
    """What a command prints to a terminal of COLUMNS columns, and its processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "COLUMNS": str(COLUMNS)}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("columns", [40, 60, 80])
@pytest.mark.parametrize("main", [console.main, trainer.__main__.main, evaluation.__main__.main])
def test_a_list_of_verbs_is_wrapped_at_the_terminals_width(
    main: Main, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    verbs = text[text.rindex("(each") :].splitlines()
    assert columns - 15 < max(map(len, verbs)) <= columns


@pytest.mark.parametrize("main", [evaluation.run.main, negatives_gen.__main__.main])
def test_help_says_where_the_key_of_an_api_comes_from(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "the key comes from $OPENAI_API_KEY" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("main", [data.blank.main, trainer.run.main, evaluation.run.main, negatives_gen.__main__.main])
def test_help_says_of_a_task_what_its_error_says(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert TASK_HELP in " ".join(capsys.readouterr().out.split())
    assert TASK_HELP.endswith("response: " + ", ".join(TASKS) + "; or your own, package.module:NAME")


def test_the_console_scripts_help_and_every_rooms_names_the_commands_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert console.main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb, (module, summary) in console.commands().items():
        assert re.search(rf"^  {verb} +{re.escape(summary)}$", text, re.MULTILINE)
        assert callable(importlib.import_module(module).main)
    assert trainer.__main__.main(["--help"]) == evaluation.__main__.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "python -m trainer.ensemble\n" in text
    assert "python -m evaluation.compare\n" in text


@pytest.mark.parametrize(
    "main",
    [
        *(importlib.import_module(module).main for module, _ in console.commands().values()),
        *(console.main, trainer.__main__.main, evaluation.__main__.main),
    ],
)
def test_every_command_tells_version_and_commit_in_one_line(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"contrastive-preference-optimization {re.escape(version)}( \(git [0-9a-f]{{12}}\))?", line)


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (console.main, [], "cpo needs a command, one of blank, generate, extend,"),
        (console.main, ["trian"], "unknown command 'trian' of cpo. Did you mean 'train'? Known: blank, generate,"),
        (console.main, ["ensemble", "--mle", "a"], "python -m trainer.ensemble needs --cpo, --output_dir."),
        (trainer.__main__.main, ["ensembl"], "unknown verb 'ensembl' of python -m trainer. Did you mean 'ensemble'?"),
        (trainer.__main__.main, ["ensemble"], "python -m trainer.ensemble needs --mle, --cpo, --output_dir."),
        (evaluation.__main__.main, ["compare"], "needs two finished runs or more"),
        (evaluation.__main__.main, ["--dataset", "facts"], "python -m evaluation.run needs --out."),
        (negatives_gen.__main__.main, ["extent"], "Did you mean 'extend'?"),
    ],
)
def test_verbs_are_passed_on_and_unknown_ones_refused(
    main: Main, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(main, words, capsys)


def test_the_console_script_finds_modules_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Entries written package.module:NAME are found as by python -m; a folder `evaluation` hides none of ours."""
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "an_entry_in_the_current_directory.py").write_text("ENTRY = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert "needs two finished runs" in refused(console.main, ["compare"], capsys)
    assert importlib.import_module("an_entry_in_the_current_directory").ENTRY == 1


@pytest.mark.seconds
def test_trainer_help_lists_our_options_and_help_all_the_inherited_ones() -> None:
    ours, every = run_command("trainer.run", "--help"), fork_command("trainer.run", "--help_all")
    assert every.returncode == 0, every.stderr
    for option in ("--objective", "--shards", "--use", "--beta", "--dataset"):
        assert option in ours.stdout
        assert option in every.stdout
    for option in ("--gradient_accumulation_steps", "--lora_r", "--load_in_4bit", "--dataloader_num_workers"):
        assert f"  {option}\n" not in ours.stdout
        assert option in every.stdout


def test_a_model_without_a_tokenizer_is_refused(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(reference, bare, ignore=shutil.ignore_patterns("token*"))
    for main, arguments in (
        (negatives_gen.__main__.main, generate(bare, tmp_path / "out")),
        (trainer.run.main, train_mle(bare, "facts", tmp_path / "out")),
        (evaluation.run.main, evaluate(bare, "facts", tmp_path / "out")),
    ):
        assert "has no tokenizer" in refused(main, arguments, capsys)
        assert not (tmp_path / "out").exists()


def test_data_without_a_usable_row_is_refused_with_the_reasons(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long_prompt = "Say Belada. " * 100
    path = rows(
        tmp_path / "bad.jsonl",
        {"prompt": "Say", "completion": ""},
        {"prompt": "Tell", "completion": "  "},
        {"prompt": long_prompt, "completion": " yes"},
        {"prompt": "Say it", "completion": "\t"},
    )
    for main, arguments in (
        (negatives_gen.__main__.main, generate(reference, tmp_path / "out", dataset=path, split="all")),
        (trainer.run.main, train_mle(reference, path, tmp_path / "out", "all")),
        (evaluation.run.main, evaluate(reference, path, tmp_path / "out", "all")),
    ):
        line = refused(main, arguments, capsys)
        assert "3 empty response" in line
        assert "1 prompt too long" in line
        assert "context 128" in line
        assert not (tmp_path / "out").exists()


def test_a_directory_that_holds_other_files_is_refused(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for main, arguments in (
        (negatives_gen.__main__.main, generate(reference, tmp_path)),
        (trainer.run.main, train(reference, negative_set, tmp_path)),
        (evaluation.run.main, evaluate(reference, "facts", tmp_path)),
    ):
        assert str(tmp_path) in refused(main, arguments, capsys)
        assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unknown_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown verb 'verifyy'" in refused(negatives_gen.__main__.main, ["verifyy", "DIR"], capsys)
