"""Docstrings stand alone: none begins with a word that points to something else, and every error says when it comes."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("data", "negatives_gen", "trainer", "evaluation")
# What begins a sentence whose subject stands elsewhere: "Of its JSON.", "All are.", "UserError: it is not."
ELSEWHERE = re.compile(
    r"(It|Its|They|Their|Them|Of|That of|Those of|All are|All do|Both are|And|Or|But)\b", re.IGNORECASE
)


def leaning(source: str) -> list[str]:
    """First sentences of docstrings, and causes of errors in them, that do not stand alone."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or "Nothing is said."
            causes = re.findall(r"^\s*\w+(?:Error|Exception): *(.+)$", text, re.MULTILINE)
            found += [line for line in (text.splitlines()[0], *causes) if ELSEWHERE.match(line) or " " not in line]
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_stand_alone(room: str) -> None:
    found = {str(p.relative_to(ROOT)): lines for p in (ROOT / room).rglob("*.py") if (lines := leaning(p.read_text()))}
    assert found == {}


def test_leaning_docstrings_are_found() -> None:
    source = '''
def f():
    """Of its JSON."""

def g():
    """Read a file.

    Raises:
        UserError: it is not.
    """
'''
    assert leaning(source) == ["Of its JSON.", "it is not."]
