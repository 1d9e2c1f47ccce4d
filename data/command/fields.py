"""What a configuration dataclass is made of: fields with a help text, nested dataclasses, options of entries."""

import dataclasses
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from data.command.errors import UserError
from data.command.registry import Registry
from data.command.values import LISTS, SCALARS, inner_type, is_dict, is_list, plain_type

# Under this mark a field's metadata holds its `EntryOptions`.
ENTRIES = "entries"


def option(default: Any, help: str, *, metavar: str | None = None, required: bool = False, **marks: Any) -> Any:
    """A field of a configuration dataclass.

    Args:
        default: None for a required one. Lists, dicts and dataclass instances are copied for each configuration.
        help: half a line for --help.
        metavar: what stands for the value in --help; None: N, X, or of a text the name in capitals.
        required: whether it must be given, and not be empty.
        marks: metadata for who reads the field, e.g. `decides=False` where a strategy's option does not decide what it
            makes, `is_name=True` where it names something whose hash is recorded.
    """
    # Only what is said: TRL's parser hands a field's metadata on to argparse.
    metadata = {"help": help, **marks}
    if metavar is not None:
        metadata["metavar"] = metavar
    if required:
        metadata["required"] = True
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return dataclasses.field(default_factory=lambda: dataclasses.replace(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class EntryOptions:
    """The mark of a field that holds the options of a home's entries, see `entry_options`."""

    registry: Registry
    chosen_by: str
    given_only: bool
    help: str


def entry_options(registry: Registry, chosen_by: str, *, given_only: bool = False, help: str = "") -> Any:
    """A field of type dict[str, Any] that holds the options of a home's entries: entry name -> its `Options`.

    On the command line and in YAML they stand at the top, under their own names. Accepted are those of all built-in
    entries and those of the entries from outside that are chosen. `Options.check` is not called: who takes the
    options of an entry that is used calls it.

    Args:
        registry: the home.
        chosen_by: the field that names the chosen entries, see `chosen_names`.
        given_only: hold, instead of instances, the values that were given: entry name -> {field: value}; what has no
            given option is left out.
        help: what stands above the options in --help; "": named after the home's kind of entry.
    """
    mark = EntryOptions(registry, chosen_by, given_only, help)

    def defaults() -> dict[str, Any]:
        return {} if given_only else {name: make_options(registry, name) for name in registry.names()}

    return dataclasses.field(default_factory=defaults, metadata={"help": help, ENTRIES: mark})


@dataclass(frozen=True)
class NoOptions:
    """The options of an entry that has none."""

    def check(self) -> None:
        """Accept the options: there is nothing to check."""


@dataclass(frozen=True)
class EntryField:
    """An option of one entry or more of a home.

    Attributes:
        field: the first entry's, with its default and marks.
        type: of the value.
        entries: names of the entries that have it.
    """

    field: dataclasses.Field
    type: Any
    entries: list[str]


def chosen_names(chosen: Any) -> list[str]:
    """The entries that a text with commas or a list names, each "NAME", "NAME=COUNT" or "NAME=COUNT:random"."""
    if not isinstance(chosen, Iterable):  # a YAML file may hold a number
        chosen = [] if chosen is None else [chosen]
    items = chosen.split(",") if isinstance(chosen, str) else chosen
    names = [str(item).partition("=")[0].strip() for item in items]
    return [name for name in names if name]


def fields_of_entries(registry: Registry, chosen: Any) -> dict[str, EntryField]:
    """The options of all built-in entries and of those from outside that are chosen.

    Args:
        chosen: see `chosen_names`; None for none. Names that are no import path are not looked at.

    Raises:
        UserError: an entry from outside cannot be loaded, or has an option that another entry has with another type
            or default.
    """
    found: dict[str, EntryField] = {}
    for name in _entries(registry, chosen):
        options = _options_of(registry, name)
        spoken = f"{registry.kind} '{name}'"
        if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
            raise UserError(f"{spoken}: its Options must be a dataclass whose fields are made with option().")
        hints = typing.get_type_hints(options)
        for field in dataclasses.fields(options):
            hint = hints[field.name]
            if default_of(field) is dataclasses.MISSING:
                raise UserError(f"{spoken}: its option '{field.name}' has no default. Give it one, None perhaps.")
            if field.metadata.get("required"):
                raise UserError(
                    f"{spoken}: its option '{field.name}' is required, which only a command's own can be. Give it a "
                    "default, None perhaps, and refuse that in `check`."
                )
            if not _is_supported(hint):
                raise UserError(
                    f"{spoken}: its option '{field.name}' is of a type that no command line has, {hint}. Use str, int, "
                    "float, bool, a list of these, or a dataclass."
                )
            known = found.setdefault(field.name, EntryField(field, hint, []))
            if (known.type, default_of(known.field)) != (hint, default_of(field)):
                raise UserError(
                    f"{spoken}: its option '{field.name}' differs in type or default from that of "
                    f"'{known.entries[0]}'. Options of one name are one option: make them alike, or rename one."
                )
            known.entries.append(registry.name(name))
    return found


def make_options(registry: Registry, name: str) -> Any:
    """The default options of an entry."""
    return _options_of(registry, name)()


def default_of(field: dataclasses.Field) -> Any:
    """A field's default; dataclasses.MISSING if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@dataclass(frozen=True)
class Key:
    """One name that a command line or a YAML file may give a value to.

    Attributes:
        name: dotted where the field stands in a nested dataclass.
        field: that it sets.
        type: of the value.
        default: dataclasses.MISSING if it has none.
        targets: where the value goes, as names from the configuration on: ("judge", "model"); several where entries
            share an option.
        entries: names of the entries that have it; none of a field of the configuration itself.
        section: of --help that it stands in; "" for the first.
        above: groups of dotted keys within the section that it is the first of, and what they are: ("api.*", "of a
            server").
    """

    name: str
    field: dataclasses.Field
    type: Any
    default: Any
    targets: tuple[tuple[str, ...], ...]
    entries: tuple[str, ...] = ()
    section: str = ""
    above: tuple[tuple[str, str], ...] = ()


def keys_of(cls: type, chosen: Callable[[str], Any]) -> dict[str, Key]:
    """All keys of a configuration dataclass by name.

    Args:
        chosen: the value of a field that chooses entries (`EntryOptions.chosen_by`).

    Raises:
        UserError: see `fields_of_entries`; or an entry's option has the name of another option of the command.
    """
    keys: dict[str, Key] = {}
    hints = typing.get_type_hints(cls)
    of_entries = [field for field in dataclasses.fields(cls) if ENTRIES in field.metadata]
    for field in dataclasses.fields(cls):
        if ENTRIES not in field.metadata:
            keys.update(_expand(Key(field.name, field, hints[field.name], default_of(field), ((field.name,),))))
    for field in of_entries:
        mark: EntryOptions = field.metadata[ENTRIES]
        section = mark.help or f"options of each {mark.registry.kind}"
        for name, entry_field in fields_of_entries(mark.registry, chosen(mark.chosen_by)).items():
            targets = tuple((field.name, entry, name) for entry in entry_field.entries)
            default = default_of(entry_field.field)
            key = Key(name, entry_field.field, entry_field.type, default, targets, tuple(entry_field.entries), section)
            if name in {known.partition(".")[0] for known in keys} | {f.name for f in of_entries}:
                raise UserError(
                    f"{mark.registry.kind} '{entry_field.entries[-1]}' has an option '{name}', which is another option "
                    "of this command already. Rename it."
                )
            keys.update(_expand(key))
    return keys


def chosen_entries(mark: EntryOptions, chosen: Any) -> list[str]:
    """Names of all built-in entries and of those from outside that are chosen."""
    return [mark.registry.name(name) for name in _entries(mark.registry, chosen)]


def _options_of(registry: Registry, name: str) -> Any:
    return getattr(registry.load(name), "Options", NoOptions)


def _entries(registry: Registry, chosen: Any) -> list[str]:
    outside = [name for name in chosen_names(chosen) if ":" in name]
    return list(dict.fromkeys([*registry.names(), *outside]))


def _expand(key: Key) -> dict[str, Key]:
    """The key itself, or those of the nested dataclass that it stands for."""
    if not dataclasses.is_dataclass(key.type):
        return {key.name: key}
    keys: dict[str, Key] = {}
    hints = typing.get_type_hints(key.type)
    group, about, above = f"{key.name}.*", key.field.metadata.get("help", ""), key.above
    if key.section and about:
        above = (*above, (group, about))
    section = key.section or f"--{group}: {about}".removesuffix(": ")
    for field in dataclasses.fields(key.type):
        targets = tuple((*target, field.name) for target in key.targets)
        name, default = f"{key.name}.{field.name}", getattr(key.default, field.name)
        keys.update(_expand(Key(name, field, hints[field.name], default, targets, key.entries, section, above)))
        above = ()
    return keys


def _is_supported(hint: Any) -> bool:
    plain = plain_type(hint)
    if is_list(plain):
        return inner_type(plain) in LISTS
    if dataclasses.is_dataclass(plain):
        return plain is hint and all(map(_is_supported, typing.get_type_hints(hint).values()))  # not: or None
    return plain in SCALARS or is_dict(plain)
