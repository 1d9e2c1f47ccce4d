"""What `pip install` gives: the console script, and every file that a room reads."""

import fnmatch
import tomllib
from importlib.metadata import EntryPoint

import cpo_rooms
from tests.support.commands import ROOT

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
