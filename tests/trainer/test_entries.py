"""The home of objectives: what its entries declare, and that no other file of the trainer knows them by name."""

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trainer.run
from data.command.entries import check
from data.command.errors import UserError
from tests.support.commands import ROOT
from trainer.objectives import DEFAULT, OBJECTIVES, names_with
from trainer.objectives.base import Objective, fault_of

NAMES = OBJECTIVES.names()
HOME = ROOT / "trainer" / "objectives"
SHIPPED = {"cpo", "cpo-rank", "dpo", "mle", "nca", "pss"}


def strings(path: Path) -> list[str]:
    """The string constants of a source file, also those within f-strings, without docstrings."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings]
    return [node.value for node in constants if isinstance(node.value, str)]


def words(text: str) -> set[str]:
    return set("".join(letter if letter.isalnum() or letter in "-_" else " " for letter in text).split())


def test_the_built_in_objectives_are_the_modules_of_the_home() -> None:
    assert set(NAMES) >= SHIPPED
    assert sorted(NAMES) == NAMES
    assert DEFAULT in NAMES
    for name in NAMES:
        objective = OBJECTIVES.load(name)
        assert (HOME / f"{name.replace('-', '_')}.py").exists()
        assert objective.summary
        assert dataclasses.is_dataclass(objective.Options)
        check(objective.Options())
        assert OBJECTIVES.origin(name) == {}


def test_help_texts_name_the_objectives_with_an_attribute() -> None:
    truths = names_with(needs="truths").split(" and ")
    assert {"mle", "pss"} <= set(truths)
    assert truths == [name for name in NAMES if OBJECTIVES.load(name).needs == "truths"]


@pytest.mark.parametrize(
    "path",
    # The two models of an ensemble are called --mle and --cpo.
    [
        path
        for path in sorted((ROOT / "trainer").rglob("*.py"))
        if HOME not in path.parents and "ensemble" not in path.parts
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_file_outside_of_the_home_names_an_objective(path: Path) -> None:
    for text in strings(path):
        # The name of one that is added may be a word of any sentence.
        assert not words(text) & SHIPPED, text
        assert text not in NAMES


@pytest.mark.parametrize("room", ["data", "negatives_gen", "evaluation"])
def test_no_other_room_compares_the_name_of_an_objective(room: str) -> None:
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                compared = [n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)]
                assert "objective" not in compared, path


def test_within_the_home_a_module_names_no_other_entry_in_its_code() -> None:
    """An exception is what dpo advises; `DEFAULT` is the home's own."""
    for path in sorted(HOME.glob("*.py")):
        own = {OBJECTIVES.load(n).name for n in NAMES if f"{n.replace('-', '_')}.py" == path.name}
        tree = ast.parse(path.read_text())
        compared = [n for node in ast.walk(tree) if isinstance(node, ast.Compare) for n in ast.walk(node)]
        assert not {n.value for n in compared if isinstance(n, ast.Constant)} & (set(NAMES) - own), path


def test_an_objective_that_defines_no_terms_trains_as_no_other() -> None:
    class Empty(Objective):
        name = "empty"
        summary = "nothing"

    with pytest.raises(NotImplementedError):
        Empty().terms(None, None, None)  # type: ignore[arg-type]


class Written(Objective):
    """One that is whole."""

    name = "written"
    summary = "something"

    def terms(self, policy_logps: Any, groups: Any, options: Any) -> dict[str, Any]:
        return {}


def test_an_objective_that_nothing_can_be_trained_with_is_refused_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fault_of(Written()) == ""
    assert [fault_of(OBJECTIVES.load(name)) for name in NAMES] == [""] * len(NAMES)
    for needs in ("grups", "truth", "pair", None):
        monkeypatch.setattr(Written, "needs", needs)
        assert fault_of(Written()) == f"has needs {needs!r}, which is none of truths, groups, pairs"
    source = "from trainer.objectives.base import Objective\n\nclass Misspelt(Objective):\n"
    source += "    name, summary = 'misspelt', 's'\n\n    def term(self, *args): ...\n\nMISSPELT = Misspelt()\n"
    (tmp_path / "misspelt_outside.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out"
    words = ["--objective", "misspelt_outside:MISSPELT", "--model", "m", "--shards", "s", "--output_dir", str(out)]
    assert trainer.run.main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: objective 'misspelt_outside:MISSPELT' lacks terms: see trainer.objectives.base.Objective."
    )
    assert not out.exists()


def test_finding_the_entries_loads_nothing_heavy() -> None:
    code = (
        "from trainer.objectives import OBJECTIVES; OBJECTIVES.names(); import trainer.config, json, sys; "
        "print(json.dumps(sorted({'torch', 'transformers', 'datasets', 'trl'} & sys.modules.keys())))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("cpo", {"beta": 0.0}, "--beta must be above 0, got 0.0."),
        ("cpo-rank", {"sft_weight": -1.0}, "--sft_weight must be 0 or more, got -1.0."),
        (
            "cpo",
            {"loss_normalize": "tokens"},
            "--loss_normalize can be length, got 'tokens'. Leave it out for sums.",
        ),
        ("dpo", {"beta": float("nan")}, "--beta must be above 0, got nan."),
        ("pss", {"pss_share": 1.5}, "--pss_share must be from 0 to 1, got 1.5."),
        ("pss", {"pss_mixtures": 0}, "--pss_mixtures must be at least 1, got 0."),
    ],
)
def test_options_of_objectives_check_their_values(name: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        OBJECTIVES.load(name).Options(**values).check()
    assert str(caught.value) == said
