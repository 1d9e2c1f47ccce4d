"""Whatever users vary has one home: a folder with a module per entry. Here entries are found, built in or not.

A built-in entry is a module of the home that defines the home's attribute, e.g. `STRATEGY`; it is known by the entry's
`name`. An entry from outside of this repository is written `package.module:NAME`, wherever a built-in name is accepted.
Importing a module of an entry must load nothing heavy: `--help` imports them all.
"""

import hashlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

from data.command.errors import UserError, did_you_mean, first_line

E = TypeVar("E")


class Registry(Generic[E]):
    """The entries of one home.

    Args:
        package: the home, e.g. "negatives_gen.strategies".
        attribute: what a module of an entry defines, e.g. "STRATEGY".
        kind: what an entry is, for messages, e.g. "strategy".
        is_entry: whether an object is one.
        helpers: modules of the home that are no entries.
    """

    def __init__(
        self, package: str, attribute: str, kind: str, is_entry: Callable[[Any], bool], helpers: Iterable[str] = ()
    ):
        self.package, self.attribute, self.kind = package, attribute, kind
        self._is_entry, self._helpers = is_entry, {"base", *helpers}
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
            self._built_in = {entry.name: entry for entry in sorted(found, key=lambda entry: entry.name)}
        return list(self._built_in)

    def load(self, name: str) -> E:
        """The entry of a built-in name, of a `package.module:NAME`, or of the name of one that was loaded before.

        Raises:
            UserError: there is none; the module fails; what it defines is no entry, or has the name of another one.
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

    def name(self, name: str) -> str:
        """What an entry calls itself: of `package.module:NAME` its `name`. Raises UserError, see `load`."""
        return self.load(name).name  # type: ignore[attr-defined]  # every entry has one

    def origin(self, name: str) -> dict[str, str]:
        """Where an entry from outside comes from, see `origin_of`; {} if built in."""
        name = self.name(name)
        return origin_of(self._paths[name], self.kind) if name in self._paths else {}

    def _from_outside(self, path: str) -> E:
        entry = import_outside(path, self.kind)
        if not self._is_entry(entry) or not isinstance(getattr(entry, "name", None), str):
            raise UserError(f"{self.kind} '{path}' is no {self.kind}: see {self.package}.base.")
        if entry.name in self.names() or self._paths.get(entry.name, path) != path:
            taken = self._paths.get(entry.name, "a built-in one")
            raise UserError(f"{self.kind} '{path}' calls itself '{entry.name}', as {taken} does. Change its name.")
        self._paths[entry.name], self._outside[entry.name] = path, entry
        return entry


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
    """For manifests and reports: "entry", the import path, and "source_sha256", of the source file that it names."""
    source = inspect.getsourcefile(importlib.import_module(path.partition(":")[0]))
    if source is None:
        raise UserError(f"{kind} '{path}' has no source file, whose hash is recorded.")
    return {"entry": path, "source_sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest()}
