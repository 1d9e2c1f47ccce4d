"""data/command/registry.py: an entry from outside is whole when it is loaded, and its source is what defines it."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import pytest

from data.command.errors import UserError
from data.command.fields import NoOptions
from data.command.registry import Registry


class Entry(ABC):
    """What the home's entries are."""

    name: str
    summary: str
    Options: ClassVar[type] = NoOptions

    @abstractmethod
    def make(self) -> None: ...


WHOLE = """
from tests.data.test_registry import Entry

class Mine(Entry):
    name = "mine"
    summary = "an entry"

    def make(self): ...

MINE = Mine()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[Entry]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Registry, "names", lambda self: [])
    return Registry("a.home", "ENTRY", "entry", Entry, reserved=["taken"])


def module(folder: Path, name: str, source: str) -> str:
    (folder / f"{name}.py").write_text(source)
    return f"{name}:MINE"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("MINE = Mine()", "MINE = Mine", "is no entry, which is an instance of it"),
        ("MINE = Mine()", "MINE = 3", "is no entry, which is an instance of it"),
        ('    summary = "an entry"\n', "", "has no summary, a text"),
        ('    name = "mine"\n', "", "has no name, a text"),
        ('name = "mine"', 'name = "a b"', "calls itself 'a b', which is no word"),
        ('name = "mine"', 'name = "taken"', "calls itself 'taken', a key of the records"),
        ("    def make", "    Options = dict\n\n    def make", "has Options that are no dataclass"),
    ],
)
def test_an_entry_that_lacks_something_is_refused_when_it_is_loaded(
    home: Registry[Entry], tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in WHOLE
    path = module(tmp_path, f"lacking_{abs(hash((old, new)))}", WHOLE.replace(old, new))
    with pytest.raises(UserError, match=said):
        home.load(path)


def test_a_class_that_is_not_finished_is_refused_with_what_it_lacks(tmp_path: Path, home: Registry[Entry]) -> None:
    classes = Registry("a.home", "ENTRY", "entry", Entry, classes=True)
    source = WHOLE.replace("    def make(self): ...\n", "").replace("MINE = Mine()", "MINE = Mine")
    with pytest.raises(UserError, match=r"lacks make: see a\.home\.base\.Entry"):
        classes.load(module(tmp_path, "unfinished_outside", source))


def test_the_source_of_an_entry_is_that_of_the_modules_that_define_it(home: Registry[Entry], tmp_path: Path) -> None:
    """A package that only hands it on does not hide a change of what it hands on."""
    module(tmp_path, "defining_outside", WHOLE)
    path = module(tmp_path, "handing_on_outside", "from defining_outside import MINE\n")
    assert home.load(path).name == "mine"
    before = home.origin("mine")
    assert before["entry"] == path
    assert home.origin("mine") == before
    module(tmp_path, "defining_outside", WHOLE + "# another\n")
    assert home.origin("mine")["source_sha256"] != before["source_sha256"]
