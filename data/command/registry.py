"""Whatever users vary has one home: a folder with a module per entry. Here entries are found, built in or not.

A built-in entry is a module of the home that defines the home's attribute, e.g. `STRATEGY`; it is known by the entry's
`name`. An entry from outside of this repository is written `package.module:NAME`, wherever a built-in name is accepted.
Importing a module of an entry must load nothing heavy: `--help` imports them all.
"""

import dataclasses
import hashlib
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from data.command.errors import UserError, did_you_mean, first_line

E = TypeVar("E")
# How an entry of one's own is named, for help texts.
OR_OWN = "or your own, package.module:NAME"
ROOMS = ("data", "negatives_gen", "trainer", "evaluation")


class Registry(Generic[E]):
    """The entries of one home.

    Args:
        package: the home, e.g. "negatives_gen.strategies".
        attribute: what a module of an entry defines, e.g. "STRATEGY".
        kind: what an entry is, for messages, e.g. "strategy".
        base: the class that entries are instances of.
        classes: entries are subclasses of `base` instead.
        fault: what such an entry says that means nothing, or lacks beside what is abstract; "" if nothing.
        reserved: names that no entry from outside may have.
        helpers: modules of the home that are no entries.
    """

    def __init__(
        self,
        package: str,
        attribute: str,
        kind: str,
        base: type,
        *,
        classes: bool = False,
        fault: Callable[[Any], str] = lambda entry: "",
        reserved: Iterable[str] = (),
        helpers: Iterable[str] = (),
    ):
        self.package, self.attribute, self.kind = package, attribute, kind
        self._base, self._classes, self._own_fault = base, classes, fault
        self._reserved, self._helpers = {*reserved}, {"base", *helpers}
        self._built_in: dict[str, E] = {}
        # Entries from outside: the import path of each name.
        self._paths: dict[str, str] = {}
        self._outside: dict[str, E] = {}

    def names(self) -> list[str]:
        """The names of the built-in entries, sorted."""
        if not self._built_in:
            home = importlib.import_module(self.package)
            modules = sorted(m.name for m in pkgutil.iter_modules(home.__path__) if m.name not in self._helpers)
            found = [getattr(importlib.import_module(f"{self.package}.{name}"), self.attribute) for name in modules]
            for name, entry in zip(modules, found, strict=True):
                self._refuse_faulty(f"{self.package}.{name}", entry)
            self._built_in = {entry.name: entry for entry in sorted(found, key=lambda entry: entry.name)}
        return list(self._built_in)

    def load(self, name: str) -> E:
        """The entry of a built-in name, of a `package.module:NAME`, or of the name of one that was loaded before.

        Raises:
            UserError: no entry has the name; the module fails; what it defines is no entry, or has another one's name.
        """
        if ":" in name:
            return self._from_outside(name)
        if name in self.names():
            return self._built_in[name]
        if name in self._outside:
            return self._outside[name]
        raise UserError(
            f"unknown {self.kind} '{name}'.{did_you_mean(name, self.names())} Known: {', '.join(self.names())}; one of "
            "your own is written package.module:NAME."
        )

    def loaded(self) -> list[str]:
        """The names of the entries from outside that were loaded."""
        return list(self._outside)

    def name(self, name: str) -> str:
        """What an entry calls itself: of `package.module:NAME` its `name`. Raises UserError, see `load`."""
        return self.load(name).name  # type: ignore[attr-defined]  # every entry has one

    def origin(self, name: str) -> dict[str, str]:
        """Where an entry from outside comes from, see `origin_of`; {} if built in."""
        name = self.name(name)
        return origin_of(self._paths[name], self.kind) if name in self._paths else {}

    def _from_outside(self, path: str) -> E:
        entry = import_outside(path, self.kind)
        self._refuse_faulty(path, entry)
        if entry.name in self._reserved:
            raise UserError(f"{self.kind} '{path}' calls itself '{entry.name}', a key of the records. Change its name.")
        if entry.name in self.names() or self._paths.get(entry.name, path) != path:
            taken = self._paths.get(entry.name, "a built-in one")
            raise UserError(f"{self.kind} '{path}' calls itself '{entry.name}', as {taken} does. Change its name.")
        self._paths[entry.name], self._outside[entry.name] = path, entry
        return entry

    def _refuse_faulty(self, path: str, entry: Any) -> None:
        if fault := self._fault(entry):
            raise UserError(f"{self.kind} '{path}' {fault}: see {self.package}.base.{self._base.__name__}.")

    def _fault(self, entry: Any) -> str:
        """What an entry lacks or says that means nothing, found before anything is made with it; "" if nothing."""
        cls = entry if isinstance(entry, type) else type(entry)
        if not issubclass(cls, self._base) or isinstance(entry, type) != self._classes:
            return f"is no {self.kind}, which is {'a subclass' if self._classes else 'an instance'} of it"
        if missing := sorted(getattr(entry, "__abstractmethods__", ())):
            return f"lacks {', '.join(missing)}"
        for text in ("name", "summary"):
            if not isinstance(getattr(entry, text, None), str) or not getattr(entry, text).strip():
                return f"has no {text}, a text"
        if not re.fullmatch(r"\w[\w-]*", entry.name):
            return f"calls itself '{entry.name}', which is no word of letters, digits, - and _"
        options = getattr(entry, "Options", None)
        if options is not None and not (isinstance(options, type) and dataclasses.is_dataclass(options)):
            return "has Options that are no dataclass"
        return self._own_fault(entry)


def meaningless(attribute: str, value: object, known: Sequence[str]) -> str:
    """What is said of an entry whose attribute is none of the words that mean something; "" if it is one."""
    return "" if value in known else f"has {attribute} {value!r}, which is none of {', '.join(known)}"


def import_outside(path: str, kind: str) -> Any:
    """What `package.module:NAME` names.

    Args:
        kind: what it should be, for messages.

    Raises:
        UserError: there is no such module, it fails when it is imported, or it defines no NAME.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"{kind} '{path}' cannot be imported: {first_line(error)}.") from error
        raise UserError(
            f"{kind} '{path}': there is no module '{module_name}'. It is looked for in the current directory, "
            "in $PYTHONPATH and among the installed packages."
        ) from error
    except Exception as error:  # whatever a user's module does when it is imported
        raise UserError(f"{kind} '{path}' cannot be imported: {type(error).__name__}: {first_line(error)}.") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise UserError(f"{kind} '{path}': module '{module_name}' defines no '{attribute}'.")
    return found


def origin_of(path: str, kind: str) -> dict[str, str]:
    """For manifests and reports: "entry", the import path, and "source_sha256" of the sources that define it.

    These are the module of the path and those that the entry's classes and functions come from, so that a change is
    seen where a package only hands the entry on; what else a module imports is not.

    Raises:
        UserError: there is no such entry, or a module has no source file.
    """
    entry = import_outside(path, kind)
    sources = []
    for module in _defining(path.partition(":")[0], entry):
        source = inspect.getsourcefile(importlib.import_module(module))
        if source is None:
            raise UserError(f"{kind} '{path}' has no source file, whose hash is recorded.")
        sources.append(Path(source).read_bytes())
    return {"entry": path, "source_sha256": hashlib.sha256(b"\0".join(sources)).hexdigest()}


def _defining(module: str, entry: Any) -> list[str]:
    """The modules that define an entry, the one of its path first, without this project's and without Python's own."""
    cls = entry if isinstance(entry, type) else type(entry)
    parts: Sequence[Any] = [*cls.__mro__, *(vars(entry).values() if not isinstance(entry, type) else ())]
    named = dict.fromkeys(part.__module__ for part in parts if isinstance(getattr(part, "__module__", None), str))
    passed_over = {*ROOMS, *sys.stdlib_module_names}
    return [module, *(name for name in named if name.split(".")[0] not in passed_over and name != module)]
