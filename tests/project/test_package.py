"""What `pip install` gives: the console script, and every file that a room reads."""

import ast
import fnmatch
import re
import sys
import tomllib
from importlib.metadata import EntryPoint

from packaging.requirements import Requirement

import cpo_rooms
from data.command.extras import EXTRAS
from tests.support.commands import ROOT
from tests.support.requirements import required

ROOMS = ("data", "negatives_gen", "trainer", "evaluation")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_console_script_is_cpo() -> None:
    scripts = PYPROJECT["project"]["scripts"]
    assert list(scripts) == ["cpo"]
    assert EntryPoint("cpo", scripts["cpo"], "console_scripts").load() is cpo_rooms.main
    assert PYPROJECT["tool"]["setuptools"]["py-modules"] == ["cpo_rooms"]


def test_every_file_of_a_room_that_is_no_module_is_package_data() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    globs = [f"{package.replace('.', '/')}/{pattern}" for package, names in patterns.items() for pattern in names]
    files = [
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert [path for path in files if not any(fnmatch.fnmatch(path, glob) for glob in globs)] == []
    assert [glob for glob in globs if not fnmatch.filter(files, glob)] == []


def test_a_source_distribution_has_no_tests_which_could_not_run_in_it() -> None:
    assert "prune tests\n" in (ROOT / "MANIFEST.in").read_text()
    assert PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"] == [f"{room}*" for room in ROOMS]


def test_a_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def third_party(*rooms: str) -> set[str]:
    """Top-level packages that the modules of some rooms import anywhere but for type checkers alone, ours left out."""
    found: set[str] = set()
    for path in (path for room in rooms for path in (ROOT / room).rglob("*.py")):
        tree = ast.parse(path.read_text())
        typing_only = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if node in typing_only:
                continue
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - {*ROOMS, "cpo_rooms", *sys.stdlib_module_names}


# What other packages of ours always bring.
BROUGHT = {"huggingface_hub", "tokenizers", "pandas", "httpx", "markupsafe", "cycler"}


def installed(*extras: str) -> set[str]:
    """Names, as they are imported, of what the package and some extras ask for."""
    names = {requirement.name for requirement in required(*extras)}
    return {"yaml" if name == "pyyaml" else name.replace("-", "_") for name in names} | BROUGHT


def test_training_alone_needs_no_extra() -> None:
    assert third_party("trainer") <= installed()
    assert not {"ray", "vllm", "openai", "sentence_transformers"} & installed()
    assert third_party("data") <= installed() | {"openai"}  # of chat servers, which generate and evaluate ask


def test_each_stage_has_its_extra() -> None:
    assert third_party("negatives_gen") <= installed("generate", "signals") | {"vllm"}
    assert third_party("evaluation") <= installed("evaluate") | {"mauve"}
    for name, extras in EXTRAS.items():
        assert all(name in installed(extra) for extra in extras.split(","))


def test_the_cap_on_transformers_is_vllms() -> None:
    extras = {"": PYPROJECT["project"]["dependencies"], **PYPROJECT["project"]["optional-dependencies"]}
    capped = {
        extra
        for extra, texts in extras.items()
        for r in map(Requirement, texts)
        if r.name == "transformers" and "<" in str(r.specifier)
    }
    assert capped == {"gpu", "cpu"}


def test_package_changelog_and_readme_are_of_one_version() -> None:
    version = PYPROJECT["project"]["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    said = re.search(r"Status: ([\d.]+\d)", (ROOT / "README.md").read_text())
    assert newest is not None
    assert said is not None
    assert (newest[1], said[1]) == (version, version)


def test_readme_has_900_words_at_most() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900
