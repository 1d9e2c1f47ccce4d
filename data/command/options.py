"""Command-line configuration: `--key value` over `--config FILE.yaml` over a dataclass's defaults.

Imports nothing heavy, so that `--help` answers at once.
"""

import dataclasses
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from data.command.errors import UserError, did_you_mean, first_line

T = TypeVar("T")


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with a help text. Lists and dicts become default factories."""
    metadata = {"help": help, **metadata}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def read_yaml(path: str) -> dict[str, Any]:
    """Read a YAML mapping. Raises UserError if the file is missing, unreadable or not a mapping."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read config file '{path}': {error.strerror}. Give an existing YAML file.") from error
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"config file '{path}' is not valid YAML: {error.problem}{where}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config file '{path}' is not valid YAML: {first_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"config file '{path}' must hold a mapping of key: value, not a {type(content).__name__}.")
    return content


def load_config(cls: type[T], argv: list[str], *, command: str) -> T:
    """Build the dataclass `cls` from `argv`.

    Keys of the form `group.name` go into the dict field called `group` (e.g. `engine.*`). A field with
    metadata `repeat=True` is a list that collects each use of its flag. Raises UserError for an unknown key
    (naming the nearest known one), a missing value, or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass by contract
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}

    flags = _split_flags(argv, command)
    where = f"on the command line of {command}"
    for key, text in flags:
        if key == "config":
            for yaml_key, value in read_yaml(text).items():
                _set(values, fields, hints, str(yaml_key), value, where=f"in {text}", command=command)
    # A flag replaces what the file said; repeating a `repeat` flag adds to the command line's own list.
    given: dict[str, Any] = {}
    for key, text in flags:
        if key != "config":
            _set(given, fields, hints, key, text, where=where, command=command)
    for key, value in given.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value

    missing = [
        name
        for name, f in fields.items()
        if (not values.get(name) and f.metadata.get("required")) or (name not in values and _has_no_default(f))
    ]
    if missing:
        names = ", ".join(f"--{name}" for name in missing)
        raise UserError(f"{command} needs {names}. Give it as a flag or in the --config file; see --help.")
    return cls(**values)


def _has_no_default(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def describe_options(cls: type) -> str:
    """The options of a config dataclass as the text of a --help."""
    lines = ["  --config FILE.yaml", "        YAML file of the keys below; flags override it."]
    for f in dataclasses.fields(cls):
        name = f"--{f.name}.KEY VALUE" if _is_dict(typing.get_type_hints(cls)[f.name]) else f"--{f.name}"
        if f.default is not dataclasses.MISSING and f.default is not None:
            default = f" (default: {f.default})"
        elif f.metadata.get("required") or _has_no_default(f):
            default = " (required)"
        else:
            default = ""
        lines += [f"  {name}", f"        {f.metadata.get('help', '')}{default}"]
    return "\n".join(lines)


def in_ray_job() -> bool:
    """Whether this is the driver of a Ray job, whose current directory is Ray's copy of the submitted one."""
    return "runtime_resources" in Path.cwd().parts


def output_root() -> Path:
    """The directory that relative paths are relative to: the current one, except inside a Ray job.

    `ray job submit --working-dir .` runs the driver in a throw-away copy of the working directory, where
    anything written is lost. There, relative paths count from $NEGATIVES_GEN_ROOT, set when the cluster was
    started; without it they are refused.
    """
    if not in_ray_job():
        return Path.cwd()
    root = os.environ.get("NEGATIVES_GEN_ROOT")
    if not root:
        raise UserError(
            "a Ray job runs in a throw-away copy of the working directory, so relative paths would be lost: give "
            "absolute paths or URLs, or start the cluster with NEGATIVES_GEN_ROOT=/shared/dir to resolve them against."
        )
    return Path(root)


def resolve_path(path: str) -> str:
    """Make a local path absolute (see `output_root`), with ~ as the home; URLs such as s3://bucket/key stay."""
    path = os.path.expanduser(path)
    if "://" in path or os.path.isabs(path):
        return path
    return str(output_root() / path)


def _split_flags(argv: list[str], command: str) -> list[tuple[str, str]]:
    flags: list[tuple[str, str]] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise UserError(f"unexpected argument '{word}' on the command line of {command}; options read --key value.")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
                raise UserError(f"--{key} on the command line of {command} needs a value.")
            text = rest.pop(0)
        flags.append((key if "." in key else key.replace("-", "_"), text))
    return flags


def _set(
    values: dict[str, Any],
    fields: Mapping[str, Any],
    hints: Mapping[str, Any],
    key: str,
    value: Any,
    *,
    where: str,
    command: str,
) -> None:
    group, dot, name = key.partition(".")
    if dot and group in fields and _is_dict(hints[group]):
        if "." in name:
            outer, _, inner = name.partition(".")
            raise UserError(f"'{key}' {where}: a key within a key is written --{group}.{outer} '{{{inner}: VALUE}}'.")
        try:
            values.setdefault(group, {})[name] = yaml.safe_load(value) if isinstance(value, str) else value
        except yaml.YAMLError as error:
            raise UserError(f"'{key}' {where} must be a YAML value, got {value!r}.") from error
        return
    if key not in fields:
        raise UserError(f"unknown key '{key}' {where}.{did_you_mean(key, fields)} See `{command} --help` for all keys.")
    converted = _convert(value, hints[key], key, where)
    if fields[key].metadata.get("repeat"):
        values[key] = [*values.get(key, []), *(converted if isinstance(converted, list) else [converted])]
    else:
        values[key] = converted


def _is_dict(hint: Any) -> bool:
    return hint is dict or typing.get_origin(hint) is dict


def _convert(value: Any, hint: Any, key: str, where: str) -> Any:
    """Convert a YAML value or a flag's text to a field's type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    wrong = UserError(f"'{key}' {where} must be {_spoken(hint)}, got {value!r}.")
    if _is_dict(hint):
        if not isinstance(value, dict):
            raise UserError(f"'{key}' {where} must be a mapping; on the command line write --{key}.NAME VALUE.")
        return value
    if typing.get_origin(hint) is list:
        return [str(v) for v in value] if isinstance(value, list) else [str(value)]
    if hint is str:
        if value is None or isinstance(value, (dict, list)):
            raise wrong
        return str(value)
    if hint is bool:
        text = str(value).lower()
        if text not in ("true", "false"):
            raise wrong
        return text == "true"
    try:
        if isinstance(value, (bool, dict, list)):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError):
        raise wrong from None
    if hint is int:
        if not number.is_integer():
            raise wrong
        try:
            return int(value)  # exact, where a float would round a long seed
        except ValueError:  # "1e3"
            return int(number)
    return number


def _spoken(hint: Any) -> str:
    spoken = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return spoken.get(hint, str(hint))
