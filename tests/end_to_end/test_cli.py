"""The commands as people use them: help at once, and one clear line for wrong input with nothing half-written."""

import importlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import data.blank
import evaluation.__main__
import evaluation.run
import negatives_gen.__main__
import trainer.__main__
import trainer.run
from data.command import console
from data.command.errors import UserError
from data.schema import SCHEMA_VERSION
from tests.support.commands import ROOT, fork_command, run_command

VERBS = tuple(f"negatives_gen {verb}" for verb in negatives_gen.__main__.VERBS)
COMMANDS = (
    *("negatives_gen", *VERBS, "trainer", "trainer.run", "trainer.ensemble"),
    *("evaluation", "evaluation.run", "evaluation.compare", "data.blank"),
)
COLUMNS = 90
Main = Callable[[list[str] | None], int]


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
    assert seconds < 1.0


def timed(words: list[str]) -> tuple[str, float]:
    """What a command prints to a terminal of COLUMNS columns, and its processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "COLUMNS": str(COLUMNS)}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_console_scripts_help_and_every_rooms_names_the_commands_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert console.main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb, (module, summary) in console.commands().items():
        assert f"  {verb:<8}  {summary}\n" in text
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
    """As python -m does, for entries written package.module:NAME; the user's folder `evaluation` hides none of ours."""
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


def test_generate_help_names_every_key() -> None:
    text = run_command("negatives_gen", "--help").stdout
    for key in [
        "model",
        "dataset",
        "task",
        "split",
        "limit",
        "out",
        "strategies",
        "top_k",
        "temperature",
        "max_new_tokens",
        "embedder",
        "groups_per_shard",
        "seed",
        "num_engines",
        "engine.",
    ]:
        assert f"--{key}" in text


def refused(main: Main, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must refuse: exit code 2 and exactly one line on stderr; returns the line."""
    capsys.readouterr()
    assert main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def generate(reference: Path, out: Path, /, **changes: str) -> list[str]:
    options = {"model": str(reference), "dataset": "facts", "embedder": "reference", "out": str(out), **changes}
    return [word for key, value in options.items() for word in (f"--{key}", value)]


def train(reference: Path, shards: Path, out: Path, *more: str) -> list[str]:
    return ["--model", str(reference), "--shards", str(shards), "--output_dir", str(out), "--use_cpu", "true", *more]


def train_mle(model: Path, dataset: str, out: Path, split: str = "train") -> list[str]:
    options = {"objective": "mle", "dataset": dataset, "split": split, "model": str(model), "output_dir": str(out)}
    return [word for key, value in options.items() for word in (f"--{key}", value)]


def evaluate(model: Path, dataset: str, out: Path, split: str = "test") -> list[str]:
    return ["--model", f"m={model}", "--dataset", dataset, "--split", split, "--limit", "8", "--out", str(out)]


def rows(path: Path, *records: dict) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "/no/such.jsonl"}, ("/no/such.jsonl", "does not exist")),
        ({"topk": "50"}, ("unknown key 'topk'", "top_k")),
        ({"strategies": "ann=11"}, ("unknown strategy 'ann'", "'an'")),
        ({"strategies": "an=0"}, ("an=0", "at least 1")),
        ({"strategies": "un=1"}, ("--api.model",)),
        ({"out": "memory://set", "push_to_hub": "me/set"}, ("only a set on a disk", "memory://set")),
        ({"split": "validation"}, ("unknown split 'validation'", "train, test, all")),
        ({"task": "doly"}, ("unknown task 'doly'", "dolly")),
        ({"limit": "many"}, ("'limit'", "whole number", "'many'")),
        ({"temperature": "0"}, ("--temperature", "above 0")),
        ({"embedder": "/no/such/embedder"}, ("/no/such/embedder", "cannot be reached")),
    ],
)
def test_generate_refuses_wrong_options_in_one_line(
    change: dict[str, str],
    said: tuple[str, ...],
    reference: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(negatives_gen.__main__.main, generate(reference, tmp_path / "out", **change), capsys)
    assert all(piece in line for piece in said), line
    assert not (tmp_path / "out").exists()


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


def test_generate_refuses_a_directory_that_holds_another_job(
    reference: Path, negative_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p.name: p.read_bytes() for p in negative_set.iterdir()}
    line = refused(negatives_gen.__main__.main, generate(reference, negative_set), capsys)
    assert "already holds another job" in line
    assert {p.name: p.read_bytes() for p in negative_set.iterdir()} == before


def test_trainer_refuses_a_model_that_is_not_the_reference_naming_both(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from data.models import weights_hash
    from tests.support.tiny import save_tiny_model

    other = save_tiny_model(tmp_path / "other", seed=1)
    line = refused(trainer.run.main, train(other, negative_set, tmp_path / "out"), capsys)
    assert weights_hash(str(reference))[:16] in line
    assert weights_hash(str(other))[:16] in line
    assert not (tmp_path / "out").exists()


def test_trainer_refuses_another_schema_version_naming_both(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "set"
    shutil.copytree(negative_set, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    line = refused(trainer.run.main, train(reference, copy, tmp_path / "out"), capsys)
    assert "schema version 99" in line
    assert f"version {SCHEMA_VERSION}" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--learning_rte", "1"], ("unknown key 'learning_rte'", "learning_rate")),
        (["--objective", "cpo-ranked"], ("unknown objective 'cpo-ranked'", "cpo-rank")),
        (["--use", "an=12"], ("an=12", "an=3")),
        (["--use", "bn=1"], ("bn=1", "an=3")),
        (["--rank_by", "rouge"], ("'rouge'", "holds embedding")),
        (["--max_steps", "many"], ("--max_steps", "many")),
        (["--beta", "0"], ("--beta", "above 0")),
        (["--split", "test"], ("no groups of split 'test'",)),
        (["--config", "/no/such.yaml"], ("/no/such.yaml", "cannot read")),
        (["--dataset", "facts"], ("--shards or --dataset",)),
        (["--sft_weight", "-1"], ("--sft_weight must be 0 or more",)),
        (
            ["--sft_weight", "1", "--objective", "mle"],
            (
                "--sft_weight does not apply to objective 'mle'; it goes with --objective cpo and cpo-rank",
                "Leave it out.",
            ),
        ),
        (["--objective", "pss", "--pss_share", "1.5"], ("--pss_share must be from 0 to 1, got 1.5",)),
        (["--objective", "pss", "--pss_passes", "0"], ("--pss_passes must be at least 1, got 0",)),
        (["--objective", "pss", "--pss_mixtures", "0"], ("--pss_mixtures must be at least 1, got 0",)),
        (
            ["--pss_mixtures", "2"],
            ("--pss_mixtures does not apply to objective 'cpo'; it goes with --objective pss", "Leave it out."),
        ),
        (["--min_similarity", "0.8", "--max_similarity", "0.2"], ("--min_similarity 0.8 is above --max_similarity",)),
        (["--min_similarity", "2"], ("leaves 48 of 48 groups without any", "Choose wider bounds")),
        (["--objective", "mle", "--use", "an=1"], ("--use does not apply to objective 'mle', which trains on ground",)),
        (["--objective", "pss", "--rank_by", "rouge"], ("--rank_by does not apply to objective 'pss'",)),
        (["--objective", "mle", "--min_similarity", "0"], ("--min_similarity does not apply to objective 'mle'",)),
        (["--objective", "mle", "--max_similarity", "1"], ("--max_similarity does not apply to objective 'mle'",)),
        (["--task", "dolly"], ("--task does not apply to --shards",)),
        (["--eval_shards", "runs/o"], ("--eval_shards does nothing without --eval_strategy",)),
        (["--eval_split", "train"], ("--eval_split does nothing without --eval_strategy",)),
        (["--max_eval_samples", "5"], ("--max_eval_samples does nothing without --eval_strategy",)),
        (["--eval_on_start", "true"], ("--eval_on_start does nothing without --eval_strategy",)),
        (["--label_smoothing_factor", "0.1"], ("--label_smoothing_factor is not supported",)),
        (["--auto_find_batch_size", "true"], ("--auto_find_batch_size is not supported",)),
        (["--train_sampling_strategy", "group_by_length"], ("goes with --objective dpo", "only; steps of groups")),
    ],
)
def test_trainer_refuses_wrong_options_in_one_line(
    more: list[str],
    said: tuple[str, ...],
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(trainer.run.main, train(reference, negative_set, tmp_path / "out", *more), capsys)
    assert all(piece in line for piece in said), line
    assert not (tmp_path / "out").exists()


def test_one_yaml_serves_objectives_with_and_without_a_temperature(tmp_path: Path) -> None:
    from trainer.arguments import parse

    recipe = ROOT / "recipes" / "quickstart-train.yaml"
    for objective in ("mle", "pss", "cpo", "cpo-rank"):
        script, _, _ = parse(["--config", str(recipe), "--objective", objective, "--output_dir", str(tmp_path)])
        assert (script.objective, script.objective_options["cpo"].beta) == (objective, 5)


def test_eval_shards_go_with_shards(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--objective", "mle", "--model", str(reference), "--dataset", "facts", "--output_dir", str(tmp_path / "o")]
    line = refused(trainer.run.main, [*words, "--eval_strategy", "steps", "--eval_shards", "s"], capsys)
    assert "--eval_shards does not apply to --dataset. Leave it out." in line


def test_trainer_refuses_an_output_directory_with_another_job_naming_the_difference(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--max_steps", "1", "--save_strategy", "no", "--per_device_train_batch_size", "4"]
    assert trainer.run.main(train(reference, negative_set, out, *options)) == 0
    line = refused(trainer.run.main, train(reference, negative_set, out, *options, "--objective", "cpo-rank"), capsys)
    assert "objective is 'cpo'" in line
    assert "'cpo-rank'" in line
    assert "--resume_from_checkpoint" in refused(
        trainer.run.main, train(reference, negative_set, out, *options), capsys
    )


def test_evaluation_refuses_a_model_without_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(evaluation.run.main, ["--model", "cpo=", "--dataset", "facts", "--out", str(tmp_path)], capsys)
    assert "NAME=PATH" in line


def test_an_unknown_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown verb 'verifyy'" in refused(negatives_gen.__main__.main, ["verifyy", "DIR"], capsys)


def test_blank_refuses_an_impossible_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(data.blank.main, ["--hidden_size", "100", "--num_heads", "3", "--out", str(tmp_path / "b")], capsys)
    assert "100 is not divisible" in line
    assert not (tmp_path / "b").exists()


def test_blank_refuses_a_directory_that_holds_a_model(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(reference, model)
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    assert "already holds files" in refused(data.blank.main, ["--out", str(model)], capsys)
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--resume_from_checkpoint", "/no/such/checkpoint"], ("/no/such/checkpoint", "does not exist")),
        (["--resume_from_checkpoint", "trainer"], ("'trainer'", "no checkpoint")),
        (["--model_revision", "v2"], ("--model_revision 'v2'", "not supported")),
        (["--attn_implementation", "no_such_attention"], ("cannot set up", "no_such_attention")),
        (["--use_peft", "true", "--lora_target_modules", "nosuch"], ("cannot set up", "nosuch")),
    ],
)
def test_trainer_refuses_what_cannot_be_set_up_before_writing(
    more: list[str],
    said: tuple[str, ...],
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(trainer.run.main, train(reference, negative_set, tmp_path / "out", *more), capsys)
    assert all(piece in line for piece in said), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("use: {an: 1}", ("'use' in ", "must be a list of texts", "{'an': 1}")),
        ("objective: [cpo]", ("'objective' in ", "must be text", "['cpo']")),
        ("objective: 5", ("'objective' in ", "must be text, got 5")),
        ("use: 11", ("'use' in ", "must be a list of texts, got 11")),
        ("sft_weight: much", ("'sft_weight' in ", "must be a number", "'much'")),
        ("dtype: float8", ("unknown dtype 'float8'",)),
        ("no_dataloader_pin_memory: true", ("unknown key 'no_dataloader_pin_memory'",)),
    ],
)
def test_trainer_refuses_yaml_values_of_the_wrong_kind_in_one_line(
    yaml: str,
    said: tuple[str, ...],
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "train.yaml").write_text(yaml + "\n")
    config = ["--config", str(tmp_path / "train.yaml")]
    line = refused(trainer.run.main, train(reference, negative_set, tmp_path / "out", *config), capsys)
    assert all(piece in line for piece in said), line


def test_trainer_does_not_retrain_a_finished_run(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also not where `--resume_from_checkpoint false` is spelled out; dashes in flags are as good as underscores."""
    options = ["--max_steps", "1", "--save_strategy", "no", "--per-device-train-batch-size", "4"]
    options += ["--no_dataloader_pin_memory", "--resume_from_checkpoint"]
    arguments = train(reference, negative_set, tmp_path / "out", *options)
    arguments[arguments.index("--output_dir")] = "--output-dir"
    assert trainer.run.main([*arguments, "true"]) == 0
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert "already holds this job" in refused(trainer.run.main, [*arguments, "false"], capsys)
    assert "finished" in refused(trainer.run.main, [*arguments, "true"], capsys)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out" / "trainer_job.json").write_text("{")
    assert "damaged" in refused(trainer.run.main, [*arguments, "true"], capsys)


def test_trainer_refuses_deepspeed_and_names_fsdp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import ModelConfig

    from trainer.arguments import PaperTrainingArguments, _refuse_unsupported

    training = PaperTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    _refuse_unsupported(training, ModelConfig())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    _refuse_unsupported(training, ModelConfig())
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="DeepSpeed is not supported"):
        _refuse_unsupported(training, ModelConfig())


def test_trainer_refuses_several_gpus_in_one_process(tmp_path: Path) -> None:
    from trl import ModelConfig

    from trainer.arguments import PaperTrainingArguments, _refuse_unsupported

    training = PaperTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    training._n_gpu = 2
    with pytest.raises(UserError, match="accelerate launch -m"):
        _refuse_unsupported(training, ModelConfig())
