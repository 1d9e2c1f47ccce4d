"""Docstrings stand alone: not too short, no first word that points elsewhere, every error says when it comes."""

import ast
import re

import pytest

from tests.support.commands import ROOT

ROOMS = ("data", "negatives_gen", "trainer", "evaluation")
# What begins a sentence whose subject stands elsewhere: "Of its JSON.", "All are.", "UserError: it is not."
ELSEWHERE = re.compile(
    r"(It|Its|They|Their|Them|Of|That of|Those of|All are|All do|Both are|And|Or|But)\b", re.IGNORECASE
)
# The same of a first line alone; a cause may well be "as `check` says": "Whose reward it is.", "0 if there are none."
SUBJECTLESS = re.compile(r"(Also|Does|Sees?|As|From|With|Within|Whose|Who|The others?|\d+ if)\b")
FEWEST_WORDS = 4  # of what others call: "The page." says less than the name does


def leaning(source: str) -> list[str]:
    """First sentences of docstrings, and causes of errors in them, that do not stand alone."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or "Nothing is said here."
            first = text.splitlines()[0]
            causes = re.findall(r"^\s*\w+(?:Error|Exception): *(.+)$", text, re.MULTILINE)
            few = not getattr(node, "name", "").startswith("_") and len(re.findall(r"\w+", first)) < FEWEST_WORDS
            if few or " " not in first or ELSEWHERE.match(first) or SUBJECTLESS.match(first):
                found.append(first)
            found += [cause for cause in causes if " " not in cause or ELSEWHERE.match(cause)]
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_stand_alone(room: str) -> None:
    found = {}
    for path in (ROOT / room).rglob("*.py"):
        name = str(path.relative_to(ROOT))
        if lines := leaning(path.read_text()):
            found[name] = lines
    assert found == {}


def test_leaning_docstrings_are_found() -> None:
    source = '''
"""A module of tests."""

def f():
    """Of its JSON."""

def g():
    """Read a file of text.

    Raises:
        UserError: it is not.
    """

def h():
    """The page."""

def _private():
    """Its short name."""

def _also_private():
    """A page."""

class Options:
    """Whose reward it is."""
'''
    assert leaning(source) == ["Of its JSON.", "it is not.", "The page.", "Its short name.", "Whose reward it is."]
