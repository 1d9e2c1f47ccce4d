"""What libraries print goes to a file, whoever prints it, and what we say does not."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.command.errors import UserError
from data.command.library_output import LibraryOutput, library_output_to
from data.command.log import start_logging
from data.command.terminal import say
from data.storage import Folder

LOG = "_job/log"


@pytest.fixture(autouse=True)
def logging_of_a_command(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    start_logging()
    yield
    root.setLevel(level)


def fail(folder: Folder, error: BaseException, *written: bytes) -> None:
    """A run during which libraries write this and that ends so."""
    with library_output_to(folder, LOG):
        for content in written:
            os.write(2, content)
        raise error


def print_everywhere() -> None:
    print("of Python")
    print("of Python's stderr", file=sys.stderr)
    os.write(1, b"of C++\n")
    subprocess.run([sys.executable, "-S", "-c", "import os; os.write(2, b'of a child\\n')"], check=True)
    logging.getLogger("vllm.engine").warning("of a library's logger")


def test_libraries_write_to_the_file_and_we_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with library_output_to(Folder(str(tmp_path)), LOG):
        print_everywhere()
        say("an outcome of ours")
        say("progress of ours", error=True)
        logging.getLogger("negatives_gen.job").warning("a warning of ours")
        written = (tmp_path / LOG).read_text()
    said = capfd.readouterr()
    assert said.out == "an outcome of ours\n"
    assert said.err.splitlines() == [
        f"INFO data.command.library_output: what libraries print goes to '{tmp_path / LOG}'",
        "progress of ours",
        "WARNING negatives_gen.job: a warning of ours",
    ]
    for words in ("of Python\n", "of Python's stderr\n", "of C++\n", "of a child\n", "of a library's logger\n"):
        assert words in written
    assert "ours" not in written
    assert not (tmp_path / LOG).exists()  # it ended well
    print_everywhere()
    assert "of C++\n" in capfd.readouterr().out


def test_what_fails_shows_what_may_explain_it_and_names_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said_by = b"\x1b[36m(MapWorker(Map(SampleStage)) pid=7)\x1b[0m "
    loading, why = said_by + b"Loading: 0%\rLoading: 100%\n", said_by + b"RuntimeError: no kernel for this GPU\n"
    with pytest.raises(UserError) as caught:
        fail(Folder(str(tmp_path)), UserError("vLLM cannot serve 'm'."), loading, why)
    assert str(caught.value) == f"vLLM cannot serve 'm'. What libraries printed is in '{tmp_path / LOG}'."
    said = capfd.readouterr().err
    assert "\n  (MapWorker(Map(SampleStage)) pid=7) RuntimeError: no kernel for this GPU\n" in said
    assert "Loading" not in said
    assert "Loading: 100%" in (tmp_path / LOG).read_text()


@pytest.mark.parametrize("error", [UserError("no such key."), ValueError("a bug")])
def test_what_fails_without_a_word_of_a_library_leaves_no_file(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught:
        fail(
            Folder(str(tmp_path)),
            error,
            b"\rLoading weights:   0%|          | 0/20\rLoading weights: 100%|####| 20/20\n",
        )
    assert str(caught.value) in ("no such key.", "a bug")
    assert not (tmp_path / LOG).exists()


def test_an_interrupted_run_keeps_its_file_and_the_next_one_begins_it_anew(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with pytest.raises(SystemExit):
        fail(folder, SystemExit(143), b"before\n")
    assert (tmp_path / LOG).read_text() == "before\n"
    with library_output_to(folder, LOG):
        assert (tmp_path / LOG).read_text() == ""


def test_warnings_of_our_workers_are_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log"
    output = LibraryOutput(str(path))
    prefix = "\x1b[36m(MapWorker(Map(ScoreStage)) pid=7, ip=10.0.0.2)\x1b[0m "
    lines = [
        f"{prefix}WARNING trainer.scoring.support: the model takes no packed layout",
        f"{prefix}WARNING vllm.engine: of a library",
        "2026-11-29 WARNING __init__.py:28 -- of Ray",
        "ERROR data.storage: without a prefix",
        f"{prefix}WARNING data.models: half a li",
    ]
    path.write_text("\n".join(lines))
    logging.getLogger().addHandler(caplog.handler)
    output.relay()
    output.relay()
    assert [(r.levelname, r.name, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "trainer.scoring.support", "in a worker: the model takes no packed layout"),
        ("ERROR", "data.storage", "in a worker: without a prefix"),
    ]
    with path.open("a") as file:
        file.write("ne\n")
    output.relay()
    assert caplog.records[-1].getMessage() == "in a worker: half a line"


def test_verbose_leaves_everything_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with library_output_to(Folder(str(tmp_path)), LOG, verbose=True) as output:
        print_everywhere()
        output.relay()
    said = capfd.readouterr()
    assert (said.out, said.err.count("\n")) == ("of Python\nof C++\n", 3)
    assert list(tmp_path.iterdir()) == []


def test_of_an_object_store_the_file_is_a_local_one(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger().addHandler(caplog.handler)
    with pytest.raises(UserError) as caught:
        fail(Folder("memory://library-output"), UserError("it ends"), b"of a library\n")
    path = Path(str(caught.value).split("'")[1])
    assert path.read_text() == "of a library\n"
    assert str(path) in caplog.records[0].getMessage()
    path.unlink()
    path.parent.rmdir()
