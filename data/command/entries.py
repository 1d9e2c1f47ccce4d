"""Options of an entry as they stand in a manifest or report, and back; see `data.command.registry`.

Marks of an option (`data.command.options.option`) say what it is to who compares two jobs: `decides=False` does not
decide the content (a server's address, a time-out); `is_name=True` names something whose hash is recorded, so that
another name for it is the same content.
"""

import dataclasses
import typing
from collections.abc import Collection, Mapping
from typing import Any


def check(options: Any) -> None:
    """Let options check themselves, if they have a `check`. Raises UserError for a value out of range."""
    if hasattr(options, "check"):
        options.check()


def over(instance: Any, given: Mapping[str, Any]) -> Any:
    """A dataclass instance with the given values in place of its own, those of nested ones one by one."""
    own = {name: getattr(instance, name) for name in given}
    changed = {
        name: over(own[name], value) if dataclasses.is_dataclass(own[name]) else value for name, value in given.items()
    }
    return dataclasses.replace(instance, **changed)


def from_settings(options: type, settings: Mapping[str, Any]) -> Any:
    """Options with the values of settings, `dataclasses.asdict` undone; keys that are no option are passed over."""
    hints = typing.get_type_hints(options)
    values = {f.name: settings[f.name] for f in dataclasses.fields(options) if f.name in settings}
    nested = [name for name, value in values.items() if dataclasses.is_dataclass(hints[name]) and value is not None]
    return options(**{**values, **{name: from_settings(hints[name], values[name]) for name in nested}})


def undecided(options: type) -> list[str]:
    """Options that do not decide the content, or do it by a hash that is recorded: dotted names, "api.timeout"."""
    found = []
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        if field.metadata.get("decides", True) is False or field.metadata.get("is_name"):
            found.append(field.name)
        elif dataclasses.is_dataclass(hints[field.name]):
            found += [f"{field.name}.{inner}" for inner in undecided(hints[field.name])]  # type: ignore[arg-type]  # a class
    return found


def flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values under dotted names: {"api": {"model": "x"}} -> {"api.model": "x"}."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            found.update({f"{name}.{inner}": inner_value for inner, inner_value in flat(value).items()})
        else:
            found[name] = value
    return found


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """One of `flat`'s back: "api.model", "x" -> {"api": {"model": "x"}}."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


def idle(options: Mapping[str, Any], used: Collection[str]) -> dict[str, list[str]]:
    """What was given to entries that are not used, and to no other: dotted option -> the entries that have it.

    Args:
        options: of each entry, instances of its `Options`.
        used: names of the entries that are.
    """
    counting = {key for name in used for key in flat(dataclasses.asdict(options[name]))}
    found: dict[str, list[str]] = {}
    for name in sorted(options.keys() - set(used)):
        default = flat(dataclasses.asdict(type(options[name])()))
        for key, value in flat(dataclasses.asdict(options[name])).items():
            if key not in counting and value != default.get(key):
                found.setdefault(key, []).append(name)
    return found
