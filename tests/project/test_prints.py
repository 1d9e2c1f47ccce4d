"""Only `data/command/terminal.py` prints, and only the reading verbs make a console, which cleans what it shows."""

import ast

from tests.support.commands import ROOT

ROOMS = ("data", "negatives_gen", "trainer", "evaluation")


def calls(*names: str) -> set[str]:
    """Files that call something by one of these names."""
    return {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
    }


def test_one_module_prints() -> None:
    assert calls("print", "sys.stdout.write", "sys.stderr.write") == {"data/command/terminal.py"}


def test_one_console_shows_tables() -> None:
    assert calls("rich.print") == set()
    assert calls("Console") == {"data/command/fitting.py"}  # writes a text, which `say` prints
    assert calls("CleanConsole") == {"negatives_gen/verbs/reading.py"}
