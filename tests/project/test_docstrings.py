"""Docstrings stand alone: not too short, no first word that points elsewhere, every error says when it comes."""

import ast
import re

import pytest

from tests.support.commands import ROOT

ROOMS = ("data", "negatives_gen", "trainer", "evaluation")
FOLDERS = (*ROOMS, "tests")
# What begins a sentence whose subject stands elsewhere: "Of its JSON.", "All are.", "UserError: it is not."
ELSEWHERE = re.compile(
    r"(It|Its|They|Their|Them|Of|That of|Those of|All are|All do|Both are|And|Or|But|Nor)\b", re.IGNORECASE
)
# The same of a first line alone; a cause may well be "as `check` says": "Whose reward it is.", "0 if there are none."
SUBJECTLESS = re.compile(
    r"(Also|Does|Sees?|As|From|With|Within|Whose|Who|Such as|The others?|The same|All others?|More|False)\b"
    r"|\d+ (if|where)\b|In (tokens|points|nats|\[)|Raises\b"
    r"|Raise \w+ if (there|it|they|some|one)\b|Wh\w+ (it|its|they|their)\b"
)
# The same of a cause alone: "UserError: there is none.", "UserError: neither says.", "UserError: see there."
CAUSELESS = re.compile(r"(there (is|are) (none|such)|neither says|that|see there)\b")
FEWEST_WORDS = 4  # of what others call: "The page." says less than the name does


def leaning(source: str, fewest_words: int = FEWEST_WORDS) -> list[str]:
    """First sentences of docstrings, and causes of errors in them, that do not stand alone."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or "Nothing is said here."
            first = text.splitlines()[0]
            causes = re.findall(r"^ {4}\w+: *(.+)$", text.partition("\nRaises:\n")[2], re.MULTILINE)
            few = not getattr(node, "name", "").startswith("_") and len(re.findall(r"\w+", first)) < fewest_words
            if few or " " not in first or ELSEWHERE.match(first) or SUBJECTLESS.match(first):
                found.append(first)
            found += [c for c in causes if " " not in c or ELSEWHERE.match(c) or CAUSELESS.match(c)]
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_stand_alone(folder: str) -> None:
    """Docstrings of tests may be of few words, or not be there: the names of tests say much."""
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        name = str(path.relative_to(ROOT))
        if lines := leaning(path.read_text(), fewest_words=0 if folder == "tests" else FEWEST_WORDS):
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

    def check(self):
        """Raise UserError if there is none."""

class Bleu:
    """In [0, 1] rather than per cent; 0 where a text has no token.

    Raises:
        Unreadable: there is none.
    """
'''
    in_order = ["Of its JSON.", "it is not.", "The page.", "Its short name.", "Whose reward it is."]
    in_order += ["In [0, 1] rather than per cent; 0 where a text has no token.", "there is none."]
    assert leaning(source) == [*in_order, "Raise UserError if there is none."]
    assert "The page." not in leaning(source, fewest_words=0)
