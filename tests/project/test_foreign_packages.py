"""A package of another's under one of our names: one line says where it lies."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cpo_rooms
from tests.support.commands import ROOT

pytestmark = pytest.mark.seconds


def python(folder: Path, *words: str) -> tuple[int, str]:
    """Exit code, and the last line on stderr, of Python in a folder; our packages are installed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


def foreign(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    return folder / name


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("data", "trainer"),
        ("data", "trainer.run"),
        ("data", "trainer.ensemble"),
        ("data", "negatives_gen"),
        ("trainer", "negatives_gen"),
        ("data", "evaluation.run"),
        ("trainer", "evaluation.run"),
        ("negatives_gen", "evaluation"),
        ("data", "evaluation.compare"),
        ("data", "evaluation.judge_check"),
    ],
)
def test_a_command_names_the_other_package_and_a_way_out(name: str, command: str, tmp_path: Path) -> None:
    place = foreign(tmp_path, name)
    code, said = python(tmp_path, "-m", command, "--help")
    assert code == 2
    assert said.startswith(
        f"error: the package '{name}' is not this project's but '{place}', which comes before '{ROOT}/"
    )
    assert said.endswith("or use the command `cpo`, which does not look in the current directory for its own packages.")


def test_a_program_gets_an_import_error_and_only_of_what_it_uses(tmp_path: Path) -> None:
    place = foreign(tmp_path, "evaluation")
    assert python(tmp_path, "-c", "import trainer, negatives_gen, data") == (0, "")
    foreign(tmp_path, "data")
    code, said = python(tmp_path, "-c", "import trainer")
    assert code == 1
    assert said.startswith(f"ImportError: the package 'data' is not this project's but '{place.parent / 'data'}'")


@pytest.mark.parametrize(
    "program",
    [
        "from trainer import ContrastiveTrainer",
        "from trainer import cpo_loss",
        "from negatives_gen import generate",
        "from evaluation import evaluate",
    ],
)
def test_a_module_in_a_file_is_found_too_by_all_that_is_exported(program: str, tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text("")
    code, said = python(tmp_path, "-c", program)
    assert code == 1
    assert said.startswith(f"ImportError: the package 'data' is not this project's but '{tmp_path / 'data.py'}'")


def test_of_a_package_that_is_asked_for_itself_python_says_where_it_lies(tmp_path: Path) -> None:
    """None of our code runs; so it is for the docs to say."""
    place = foreign(tmp_path, "data")
    code, said = python(tmp_path, "-c", "from data import NegativeSet")
    assert code == 1
    assert said == f"ImportError: cannot import name 'NegativeSet' from 'data' ({place}/__init__.py)"


def test_a_folder_without_modules_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert python(tmp_path, "-c", "import trainer, negatives_gen, evaluation") == (0, "")


def test_cpo_does_not_mind_the_current_directory_but_an_installed_package(tmp_path: Path) -> None:
    foreign(tmp_path, "data")
    script = tmp_path / "bin" / "cpo"
    script.parent.mkdir()
    script.write_text("import sys\nfrom cpo_rooms import main\nsys.exit(main())\n")
    assert python(tmp_path, str(script), "--version") == (0, "")
    foreign(script.parent, "evaluation")
    code, said = python(tmp_path, str(script), "--version")
    assert (code, said.split(",")[0]) == (
        2, f"error: the package 'evaluation' is not this project's but '{script.parent / 'evaluation'}'"
    )  # fmt: skip


def test_where_packages_lie() -> None:
    assert [cpo_rooms._place(room) for room in cpo_rooms.ROOMS] == [ROOT / room for room in cpo_rooms.ROOMS]
    assert cpo_rooms._place("no_such_package_at_all") is None
    spec = importlib.util.find_spec("cpo_rooms")
    assert spec is not None
    assert cpo_rooms._place("cpo_rooms") == Path(str(spec.origin))
