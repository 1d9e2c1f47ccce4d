"""`make rounds`: what it runs, by its recipes; and, slow, two rounds in small that are killed and go on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.command.options import load_config, read_yaml
from data.counts import parse_counts
from data.shards import NegativeSet
from data.storage import sha256
from evaluation.config import EvaluateConfig
from negatives_gen.config import GenerateConfig
from tests.support.commands import ROOT
from trainer.arguments import parse

RECIPES = ROOT / "recipes/rounds"


def make_words(runs: Path, *more: str) -> list[str]:
    return ["make", "rounds-steps", "ROUNDS=2", f"RUNS={runs}", f"PY={sys.executable}", *more]


def planned(runs: Path, *more: str) -> list[tuple[str, str, list[str]]]:
    """Module, recipe and the other words of each command that make would run."""
    done = subprocess.run(
        [*make_words(runs, *more), "-n"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.replace("\\\n", " ").splitlines()
    commands = [re.search(r"\S+ -m (\S+) (.*)", line) for line in lines if not line.startswith("echo")]
    found = []
    for module, text in [(command[1], command[2]) for command in commands if command]:
        recipe = re.search(r"--config recipes/rounds/(\S+)\.yaml", text)
        found.append((module, recipe[1] if recipe else "", text.split()))
    return found


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_each_round_goes_from_its_reference_to_the_next(tmp_path: Path, negative_set: Path) -> None:
    steps, folder = planned(tmp_path), f"{tmp_path}/rounds"
    assert [step[:2] for step in steps] == [
        ("data.blank", ""),
        ("trainer.run", "reference"),
        ("negatives_gen", "negatives"),
        ("trainer.run", "train"),
        ("evaluation.run", "evaluate"),
        ("negatives_gen", "negatives-again"),
        ("trainer.run", "train"),
        ("evaluation.run", "evaluate"),
    ]
    assert {recipe for _, recipe, _ in steps} - {""} == {path.stem for path in RECIPES.glob("*.yaml")}
    first, then = (words for module, _, words in steps if module == "negatives_gen")
    assert (value(first, "--model"), value(first, "--seed")) == (f"{folder}/0/policy", "1")
    assert (value(then, "--model"), value(then, "--seed")) == (f"{folder}/1/policy", "2")
    assert (value(then, "--earlier_set"), value(then, "--out")) == (f"{folder}/1/negatives", f"{folder}/2/negatives")
    reference, *rounds = (words for module, _, words in steps if module == "trainer.run")
    assert value(reference, "--output_dir") == f"{folder}/0/policy"
    for number, words in enumerate(rounds, 1):
        assert value(words, "--model") == f"{folder}/{number - 1}/policy"
        assert value(words, "--shards") == f"{folder}/{number}/negatives"
        assert value(words, "--output_dir") == f"{folder}/{number}/policy"
        script, training, _ = parse(words)
        assert (script.objective, training.max_steps) == ("cpo", read_yaml(str(RECIPES / "train.yaml"))["max_steps"])
    evaluations = [words for module, _, words in steps if module == "evaluation.run"]
    for last, words in enumerate(evaluations, 1):
        config = load_config(EvaluateConfig, words, command="evaluation.run")
        assert config.models() == {f"round-{number}": f"{folder}/{number}/policy" for number in range(last + 1)}
        assert (config.out, config.store) == (f"{folder}/evaluation-{last}", f"{folder}/store")
    for words in (first, then):
        if words is then:
            words[words.index("--earlier_set") + 1] = str(negative_set)
            words += ["--strategies", "an=4,earlier=3"]
        config = load_config(GenerateConfig, words, command="negatives_gen")
        config.check()
        assert parse_counts(config.strategies, "")["an"] == 4


def test_what_is_there_is_not_made_again_and_more_rounds_go_on(tmp_path: Path) -> None:
    for name in ("0/policy/trainer_state.json", "1/negatives/manifest.json", "1/policy/trainer_state.json"):
        (tmp_path / "rounds" / name).parent.mkdir(parents=True)
        (tmp_path / "rounds" / name).touch()
    assert [recipe for _, recipe, _ in planned(tmp_path)] == ["evaluate", "negatives-again", "train", "evaluate"]


def test_a_reference_of_ones_own_is_where_rounds_begin(tmp_path: Path) -> None:
    steps = planned(tmp_path, "ROUND_REFERENCE=/my/model")
    assert [step[:2] for step in steps[:2]] == [("negatives_gen", "negatives"), ("trainer.run", "train")]
    assert [value(words, "--model") for _, _, words in steps[:2]] == ["/my/model"] * 2
    assert "round-0=/my/model" in steps[-1][2]


def test_other_recipes_have_a_folder_of_their_own(tmp_path: Path) -> None:
    first = planned(tmp_path, "ROUND_RECIPES=/my/recipes/wiki/")[1][2]
    assert value(first, "--output_dir") == f"{tmp_path}/wiki/0/policy"


def in_small(folder: Path) -> Path:
    """The recipes with fewer rows and steps."""
    shutil.copytree(RECIPES, folder)
    for name, changes in {
        "reference": {"max_steps: 180": "max_steps: 60"},
        "negatives": {"limit: 320": "limit: 40", "an=4": "an=2", "per_shard: 160": "per_shard: 20"},
        "negatives-again": {
            "limit: 320": "limit: 40",
            "an=4,earlier=4": "an=2,earlier=2",
            "per_shard: 160": "per_shard: 20",
        },
        "train": {"max_steps: 75": "max_steps: 3", "warmup_steps: 5": "warmup_steps: 1"},
        "evaluate": {"split: test": "split: test\nlimit: 20"},
    }.items():
        path = folder / f"{name}.yaml"
        text = path.read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
    return folder


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_two_rounds_that_are_killed_go_on_and_end_in_one_table_and_plot(tmp_path: Path) -> None:
    words = make_words(tmp_path / "runs", f"ROUND_RECIPES={in_small(tmp_path / 'recipes/rounds')}")
    folder = tmp_path / "runs/rounds"
    second = folder / "2/negatives"
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 900
        while not (second / "_job").exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert (second / "_job").exists(), (tmp_path / "log").read_text()[-3000:]
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("[01]/*/*.*")}
    assert not (second / "manifest.json").exists()

    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = NegativeSet(str(second))
    manifest = (folder / "1/negatives/manifest.json").read_bytes()
    assert found.manifest.job["strategies"]["earlier"]["earlier_sha256"] == sha256(manifest)
    earlier = {group.id: group for group in NegativeSet(str(folder / "1/negatives")).groups()}
    assert len(found) > 20
    for group in found.groups():
        theirs = [c.ids for c in earlier[group.id].negatives]
        assert [c.ids for c in group.negatives if c.strategy == "earlier"] == theirs
        assert [c.strategy for c in group.negatives] == ["an", "an", "earlier", "earlier"]
    assert "| round-1 |" in (folder / "evaluation-1/report.md").read_text()
    report = (folder / "evaluation-2/report.md").read_text()
    assert all(f"| round-{number} |" in report for number in range(3))
    assert "](rounds.svg)" in report
    assert (folder / "evaluation-2/rounds.svg").read_bytes().startswith(b"<?xml")
