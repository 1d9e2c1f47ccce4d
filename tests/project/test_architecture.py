"""The tree of docs/architecture.md: every file of the four rooms, every folder of tests/, and nothing else."""

import importlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from data.command.registry import Registry
from evaluation.metrics import METRICS
from negatives_gen.signals import SIGNALS
from negatives_gen.strategies import STRATEGIES
from tests.support.commands import ROOT
from trainer.objectives import OBJECTIVES

ROOMS = ("data", "negatives_gen", "trainer", "evaluation")


def tree(text: str) -> set[str]:
    """Paths of an indented tree, a name a line and two spaces a level; folders end with a slash."""
    paths, folders = set(), [""]
    for indent, name in re.findall(r"^ {4}((?:  )*)([\w.]+/?)(?= |$)", text, re.MULTILINE):
        del folders[len(indent) // 2 + 1 :]
        path = folders[-1] + name
        paths.add(path)
        if name.endswith("/"):
            folders.append(path)
    return paths


def documented() -> set[str]:
    page = (ROOT / "docs/architecture.md").read_text()
    return tree(page.split("\n## Rooms\n")[1].split("\n| room |")[0])


def kept() -> set[str]:
    """Files of the repository that git knows."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout: " + listed.stderr.strip())
    return {path for path in listed.stdout.splitlines() if (ROOT / path).exists()}


def entries() -> set[str]:
    """Modules of the homes that define an entry: a new one need not stand in the tree."""
    homes: list[Registry[Any]] = [OBJECTIVES, STRATEGIES, SIGNALS, METRICS]
    found = {path: home for home in homes for path in (ROOT / home.package.replace(".", "/")).glob("*.py")}
    return {
        str(path.relative_to(ROOT))
        for path, home in found.items()
        if path.stem != "__init__" and hasattr(importlib.import_module(f"{home.package}.{path.stem}"), home.attribute)
    }


@pytest.mark.parametrize("room", ROOMS)
def test_tree_has_the_files_of_a_room_and_no_other(room: str) -> None:
    files = {path for path in kept() if path.startswith(f"{room}/") and not path.endswith("/__init__.py")}
    listed = {path for path in documented() if path.startswith(f"{room}/") and not path.endswith("/")}
    assert listed <= files
    assert files - listed <= entries()


def test_tree_has_the_folders_of_the_repository_and_no_other() -> None:
    tops = {path.split("/")[0] for path in kept() if "/" in path and not path.startswith(".")}
    rooms = {
        f"{folder}/"
        for path in kept()
        if path.split("/")[0] in ROOMS
        for folder in map(str, Path(path).parents)
        if folder != "."
    }
    of_tests = {f"tests/{path.split('/')[1]}/" for path in kept() if re.fullmatch(r"tests/\w+/[^/]+", path)}
    assert {path for path in documented() if path.endswith("/")} == {f"{top}/" for top in tops} | rooms | of_tests


def test_a_tree_is_read_by_its_indents() -> None:
    text = "    data/     rows\n      one.py\n      page/   pages\n        two.css  looks\n      three.py  a word\n"
    assert tree(text + "    docs/     prose\n") == {
        "data/",
        "data/one.py",
        "data/page/",
        "data/page/two.css",
        "data/three.py",
        "docs/",
    }
