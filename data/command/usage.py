"""The text of a --help: what a command does and which options it has, wrapped at the terminal's width."""

import dataclasses
import shutil
import textwrap

from data.command.fields import Key, keys_of
from data.command.values import inner_type, is_dict, is_list, plain_type

METAVARS = {str: "TEXT", int: "N", float: "X", bool: "[true|false]"}
INDENT = " " * 8
LEAST_WIDTH = 40


def help_text(cls: type, *, usage: str, about: str) -> str:
    """A command's help: usage, what it does, the required options, then the others; defaults are shown.

    Args:
        cls: the configuration dataclass.
        usage: how the command is called, a line each way.
        about: paragraphs, with an empty line between them; lines that begin with a blank are kept as they are.
    """
    keys = list(keys_of(cls, lambda name: None).values())
    sections: dict[str, list[Key]] = {"required": [], "options": []}
    for key in keys:
        heading = "required" if key.field.metadata.get("required") or key.default is dataclasses.MISSING else "options"
        sections.setdefault(key.section or heading, []).append(key)
    blocks = [_usage(usage), _wrapped(about)]
    for heading, section in sections.items():
        lines = [line for key in section for line in _described(key)]
        if heading == "options":
            lines = [*_entry("--config FILE.yaml", "YAML file of these keys; flags override it"), *lines]
        if lines:
            blocks.append("\n".join([*_filled(f"{heading}:", ""), *lines]))
    return "\n\n".join(block for block in blocks if block)


def _usage(usage: str) -> str:
    first, *others = usage.strip().splitlines()
    return "\n".join([f"usage: {first}", *(f"       {line.strip()}" for line in others)])


def _wrapped(about: str) -> str:
    """Paragraphs of any line length at the terminal's width."""
    paragraphs = textwrap.dedent(about).strip().split("\n\n")
    return "\n\n".join(
        paragraph if any(line.startswith(" ") for line in paragraph.splitlines()) else "\n".join(_filled(paragraph, ""))
        for paragraph in paragraphs
    )


def _described(key: Key) -> list[str]:
    kind = plain_type(key.type)
    metavar = key.field.metadata.get("metavar") or METAVARS.get(inner_type(kind) if is_list(kind) else kind, "VALUE")
    name = f"--{key.name}.KEY {metavar}" if is_dict(kind) else f"--{key.name} {metavar}"
    owners = f"{', '.join(key.entries)}: " if key.entries else ""
    return _entry(
        f"{name} ..." if is_list(kind) else name, f"{owners}{key.field.metadata.get('help', '')}{_spoken_default(key)}"
    )


def _entry(name: str, text: str) -> list[str]:
    return [f"  {name}", *(_filled(text.strip(), INDENT) if text.strip() else [])]


def _spoken_default(key: Key) -> str:
    default = key.default
    if default is dataclasses.MISSING or default is None or default in ("", [], {}):
        return ""
    if isinstance(default, bool):
        return f" (default: {str(default).lower()})"
    if isinstance(default, list):
        return f" (default: {' '.join(map(str, default))})"
    return f" (default: {default})"


def _filled(text: str, indent: str) -> list[str]:
    width = max(LEAST_WIDTH, shutil.get_terminal_size().columns)
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
