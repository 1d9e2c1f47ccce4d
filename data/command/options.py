"""Command-line configuration: `--key value` over `--config FILE.yaml` over a dataclass's defaults.

Imports nothing heavy, so that `--help` answers at once.

A field is of type str, int, float, bool, a list of one of the first three, a dataclass of such fields, or a dict; any
but a dataclass may be None too. In nested dataclasses, keys are dotted: `--judge.model X`, in YAML `judge: {model: X}`.
A dict takes any key: `--engine.X VALUE`, with VALUE read as YAML. A flag alone means true. Lists are written `--x a b`,
`--x a,b` or `--x a --x b`; an item that holds a comma goes into a list of the YAML file.
"""

import dataclasses
import math
import os
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from data.command.entries import over
from data.command.errors import UserError, first_line
from data.command.fields import (
    ENTRIES,
    EntryField,
    EntryOptions,
    Key,
    NoOptions,
    chosen_entries,
    chosen_names,
    default_of,
    entry_options,
    fields_of_entries,
    keys_of,
    make_options,
    option,
)
from data.command.flags import list_flags, needs_value, only_word, split_flags
from data.command.privacy import SECRET_OPTION
from data.command.synonyms import hint
from data.command.usage import help_text
from data.command.values import convert, is_dict, is_list, needs_mapping, plain_type, require_finite

__all__ = [
    "EntryField",
    "NoOptions",
    "chosen_names",
    "enter_root",
    "entry_options",
    "fields_of_entries",
    "help_text",
    "list_flags",
    "load_config",
    "make_config",
    "option",
    "output_root",
    "read_yaml",
    "resolve_path",
]

T = TypeVar("T")
# Names the directory that relative paths count from.
ROOT_VARIABLE = "NEGATIVES_GEN_ROOT"
MOST_VALUES = 100_000  # of a YAML file


def load_config(cls: type[T], argv: list[str], *, command: str, others: Collection[str] = ()) -> T:
    """Build the configuration dataclass `cls` from a command line.

    Args:
        argv: the words behind the command.
        command: for messages, e.g. "python -m negatives_gen".
        others: keys that a YAML file may hold for another parser; they are passed over.

    Raises:
        UserError: an unknown key (the nearest known one is named), a missing value, or a value of the wrong type.
    """
    flags = split_flags(argv, command)
    from_files = [
        (str(key), value, f"in {path}")
        for words in flags.pop("config", [])
        for path in [only_word(words, "config", command)]
        for key, value in read_yaml(path).items()
    ]
    hints = typing.get_type_hints(cls)

    def chosen(name: str) -> Any:
        if name in flags and is_list(hints[name]):
            return ",".join(word for words in flags[name] for word in words)
        if name in flags:
            return ",".join(flags[name][-1])
        return next((value for key, value, _ in reversed(from_files) if key == name), _default(cls, name))

    values = _Values(cls, chosen, f" See `{command} --help` for all keys.", others)
    for key, value, where in from_files:
        if key not in others or key in values.keys:
            values.set(key, value, where)
    for key, occurrences in flags.items():
        values.set_by_flag(key, occurrences, command)
    if missing := values.missing():
        names = ", ".join(f"--{name}" for name in missing)
        raise UserError(f"{command} needs {names}. Give it as a flag or in the --config file; see --help.")
    return values.make()


def make_config(cls: type[T], **keys: Any) -> T:
    """Build the configuration dataclass `cls` from Python values, with the conversion and the checks of a command line.

    For programs and tests that call what a command calls; commands themselves go through `load_config`.

    Args:
        keys: under the names of the command line; of nested dataclasses dotted (`**{"judge.model": "X"}`) or as
            mappings (`judge={"model": "X"}`).

    Raises:
        UserError: an unknown key, a missing one, or a value of the wrong type.
    """
    values = _Values(cls, lambda name: keys.get(name, _default(cls, name)), "")
    for key, value in keys.items():
        values.set(key, os.fspath(value) if isinstance(value, os.PathLike) else value, f"of {cls.__name__}")
    if missing := values.missing():
        raise UserError(f"{cls.__name__} needs {', '.join(missing)}.")
    return values.make()


def read_yaml(path: str) -> dict[str, Any]:
    """Read a YAML mapping. Raises UserError if the file is missing, unreadable or not a mapping."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise UserError(f"cannot read config file '{path}': {error.strerror}. Give an existing YAML file.") from error
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"config file '{path}' is not valid YAML: {error.problem}{where}.") from error
    except (yaml.YAMLError, ValueError) as error:  # bad UTF-8 and a date that is none are ValueErrors
        raise UserError(f"config file '{path}' is not valid YAML: {first_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"config file '{path}' is not valid YAML: nested too deeply.") from error
    if content is None:
        return {}
    if _expanded(content, {}) > MOST_VALUES:
        raise UserError(f"config file '{path}' holds more than {MOST_VALUES:,} values (aliases count each time).")
    if not isinstance(content, dict):
        raise UserError(f"config file '{path}' must hold a mapping of key: value, not a {type(content).__name__}.")
    return content


class _UniqueKeys(yaml.SafeLoader):
    """A loader that refuses a mapping with a key twice, of which YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        words = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and words.index((key.tag, key.value)) != number:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _expanded(value: Any, sizes: dict[int, float]) -> float:
    """How many values a YAML value holds with every alias written out; infinite for one that holds itself.

    Args:
        sizes: those of lists and mappings that were met before, by `id`.
    """
    if not isinstance(value, dict | list | tuple):  # a tuple of !!pairs or !!omap
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = math.inf  # until its end is reached
        items = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_expanded(item, sizes) for item in items)
    return sizes[id(value)]


def current_directory() -> Path:
    """The current directory. Raises UserError if it was deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise UserError("the current directory was deleted. Go to another one.") from error


def in_ray_job() -> bool:
    """Whether this is the driver of a Ray job, whose current directory is Ray's copy of the submitted one."""
    return "runtime_resources" in current_directory().parts


def output_root() -> Path:
    """The directory that relative paths are relative to: $NEGATIVES_GEN_ROOT where it is set, else the current one.

    A job's driver runs where the cluster was started, or, with `ray job submit --working-dir .`, in a throw-away copy
    of the working directory, where anything written is lost: there relative paths are refused without the variable.

    Raises:
        UserError: the variable holds a relative path, or the current directory was deleted.
    """
    root = os.environ.get(ROOT_VARIABLE)
    if root and not os.path.isabs(root):
        raise UserError(f"${ROOT_VARIABLE} is '{root}': relative paths count from it. Set it to an absolute one.")
    if not root and not in_ray_job():
        return current_directory()
    if not root:
        raise UserError(
            "a Ray job runs in a throw-away copy of the working directory, so relative paths would be lost: give "
            "absolute paths or URLs, or start the cluster with NEGATIVES_GEN_ROOT=/shared/dir to resolve them against."
        )
    return Path(root)


def enter_root() -> None:
    """Go to the directory of $NEGATIVES_GEN_ROOT where it is set, so that every relative path counts from it.

    For commands that hand paths to libraries; --config files have been read by then.

    Raises:
        UserError: the variable holds a relative path, or one of no directory.
    """
    if not os.environ.get(ROOT_VARIABLE):
        return
    root = output_root()
    try:
        os.chdir(root)
    except OSError as error:
        raise UserError(
            f"${ROOT_VARIABLE} is '{root}', which cannot be entered: {error.strerror}. Set it to a directory, or not "
            "at all."
        ) from error


def resolve_path(path: str) -> str:
    """Make a local path absolute (see `output_root`), with ~ as the home; URLs such as s3://bucket/key stay."""
    path = os.path.expanduser(path)
    if "://" in path or os.path.isabs(path):
        return path
    return str(output_root() / path)


def require_local(path: str, option: str, why: str = "") -> None:
    """Raise UserError for a URL, of which `Path` would make a folder named "s3:"."""
    if "://" in path:
        raise UserError(f"{option} '{path}' is a URL{why}. Give a local directory.")


class _Values:
    """What is given for a configuration dataclass, key by key.

    Args:
        cls: the dataclass.
        chosen: the value of a field that chooses entries.
        see: where all keys are listed, for messages.
        others: keys of another parser, for hints.
    """

    def __init__(self, cls: type, chosen: Callable[[str], Any], see: str, others: Iterable[str] = ()):
        self.cls, self.chosen, self.see, self.others = cls, chosen, see, others
        self.keys = keys_of(cls, chosen)
        self.groups = {name[:end] for name in self.keys for end, letter in enumerate(name) if letter == "."}
        # Nested as the configuration is.
        self.given: dict[str, Any] = {}

    def set(self, name: str, value: Any, where: str) -> None:
        """Take a value of a YAML file or of Python."""
        if key := self._find(name):
            self._put(key, convert(value, key.type, name, where))
        elif name in self.groups:
            if not isinstance(value, Mapping):
                raise needs_mapping(name, where)
            for inner, inner_value in value.items():
                self.set(f"{name}.{inner}", inner_value, where)
        else:
            key, item = self._item(name, where)
            require_finite(value, name, where)
            self._put_item(key, item, value)

    def set_by_flag(self, name: str, occurrences: list[list[str]], command: str) -> None:
        """Take what stands on the command line: the words behind each use of a flag."""
        where = f"on the command line of {command}"
        if key := self._find(name):
            if is_list(key.type):
                if not all(occurrences):
                    raise needs_value(name, command)
                text = ",".join(word for words in occurrences for word in words)
                self._put(key, convert(text, key.type, name, where))
                return
            alone = "true" if plain_type(key.type) is bool else None
            texts = [only_word(words, name, command, alone) for words in occurrences]
            self._put(key, [convert(text, key.type, name, where) for text in texts][-1])
        elif name in self.groups:
            raise needs_mapping(name, where)
        else:
            key, item = self._item(name, where)
            text = [only_word(words, name, command, "true") for words in occurrences][-1]
            try:
                value = yaml.safe_load(text)
            except (yaml.YAMLError, ValueError, RecursionError) as error:
                raise UserError(f"'{name}' {where} must be a YAML value, got {text!r}.") from error
            require_finite(value, name, where)
            self._put_item(key, item, value)

    def missing(self) -> list[str]:
        """Names of keys that must be given and are not."""
        return [
            key.name
            for key in self.keys.values()
            if not key.entries
            and (not self._given_for(key) if key.field.metadata.get("required") else self._is_lacking(key))
        ]

    def make(self) -> Any:
        """Make the configuration from what was given and the defaults."""
        given: dict[str, Any] = {}
        for field in dataclasses.fields(self.cls):
            if mark := field.metadata.get(ENTRIES):
                of_entries = self.given.get(field.name, {})
                given[field.name] = of_entries if mark.given_only else self._options(mark, of_entries)
            elif field.name in self.given:
                value, default = self.given[field.name], default_of(field)
                given[field.name] = over(default, value) if dataclasses.is_dataclass(default) else value
        return self.cls(**given)

    def _options(self, mark: EntryOptions, given: dict[str, Any]) -> dict[str, Any]:
        entries = chosen_entries(mark, self.chosen(mark.chosen_by))
        return {name: over(make_options(mark.registry, name), given.get(name, {})) for name in entries}

    def _find(self, name: str) -> Key | None:
        return self.keys.get(name) or self.keys.get(name.replace("-", "_"))

    def _item(self, name: str, where: str) -> tuple[Key, str]:
        """The dict field that a dotted key is in, and the key in it. Raises UserError if there is none."""
        for end, letter in enumerate(name):
            group = self._find(name[:end]) if letter == "." else None
            if group is not None and is_dict(plain_type(group.type)):
                item = name[end + 1 :]
                if "." in item:
                    outer, _, inner = item.partition(".")
                    raise UserError(
                        f"'{name}' {where}: a key within a key is written --{group.name}.{outer} '{{{inner}: VALUE}}'."
                    )
                return group, item
        group, dot, last = name.rpartition(".")
        if dot and group in self.groups and SECRET_OPTION.fullmatch(last):
            raise UserError(f"--{name} is not an option: the key comes from $OPENAI_API_KEY only.")
        raise UserError(f"unknown key '{name}' {where}.{hint(name, [*self.keys, *self.others])}{self.see}")

    def _put(self, key: Key, value: Any) -> None:
        for *outer, last in key.targets:
            self._node(outer)[last] = value

    def _put_item(self, key: Key, item: str, value: Any) -> None:
        for target in key.targets:
            self._node(target)[item] = value

    def _node(self, path: Iterable[str]) -> dict[str, Any]:
        node = self.given
        for part in path:
            node = node.setdefault(part, {})
        return node

    def _given_for(self, key: Key) -> Any:
        *outer, last = key.targets[0]
        return self._node(outer).get(last)

    def _is_lacking(self, key: Key) -> bool:
        *outer, last = key.targets[0]
        return key.default is dataclasses.MISSING and last not in self._node(outer)


def _default(cls: type, name: str) -> Any:
    return next(default_of(field) for field in dataclasses.fields(cls) if field.name == name)
