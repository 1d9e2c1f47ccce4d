"""The text of a --help: what a command does and which options it has, wrapped at the terminal's width."""

import dataclasses
import re
import shutil
import textwrap
from itertools import dropwhile

from data.command.fields import Key, keys_of
from data.command.flags import split_flags
from data.command.terminal import say
from data.command.values import inner_type, is_dict, is_list, plain_type
from data.command.version import version_line

# What stands for a value; for a text, its option's name in capitals.
METAVARS = {int: "N", float: "X", bool: "[true|false]"}
INDENT = " " * 8
# "  term  meaning"
TABLE_ROW = re.compile(r"(  \S.*?  +)(\S.*)")
LEAST_WIDTH = 40


def answered(argv: list[str], cls: type, *, usage: str, about: str) -> bool:
    """Print the help or the version if a command line asks for it; returns whether it did.

    Args:
        cls, usage, about: see `help_text`.
    """
    if {"-h", "--help"} & set(argv):
        say(help_text(cls, usage=usage, about=about, argv=argv))
    elif "--version" in argv:
        say(version_line())
    else:
        return False
    return True


def help_text(cls: type, *, usage: str, about: str, argv: list[str] | None = None) -> str:
    """A command's help: usage, what it does, the required options, then the others; defaults are shown.

    Args:
        cls: the configuration dataclass.
        usage: how the command is called, a line each way.
        about: paragraphs with an empty line between them, or tables, whose rows read "  term  meaning".
        argv: the command line, whose entries from outside show their options too.
    """
    flags = split_flags(list(dropwhile(lambda word: not word.startswith("--"), argv or [])), "")
    chosen = {name: ",".join(word for words in uses for word in words) for name, uses in flags.items()}
    keys = list(keys_of(cls, lambda name: chosen.get(name)).values())
    sections: dict[str, list[Key]] = {"required": [], "options": []}
    for key in keys:
        heading = "required" if key.field.metadata.get("required") or key.default is dataclasses.MISSING else "options"
        sections.setdefault(key.section or heading, []).append(key)
    blocks = [_usage(usage), wrapped(about)]
    for heading, section in sections.items():
        lines = [line for key in section for line in _described(key)]
        if heading == "options":
            lines = [*_entry("--config FILE.yaml", "YAML file of these keys; flags override it"), *lines]
            lines += _entry("--version", "say version and commit, and nothing else")
        if lines:
            blocks.append("\n".join([*_filled(f"{heading}:", ""), *lines]))
    return "\n\n".join(block for block in blocks if block)


def _usage(usage: str) -> str:
    first, *others = usage.strip().splitlines()
    heads = ["usage: ", *("       " for _ in others)]
    return "\n".join(
        part
        for head, line in zip(heads, [first, *others], strict=True)
        for part in _filled(line.strip(), head, " " * 11)
    )


def wrapped(about: str) -> str:
    """Paragraphs and tables at the terminal's width; see `help_text` for both."""
    return "\n\n".join("\n".join(_block(block)) for block in about.strip("\n").split("\n\n"))


def _block(block: str) -> list[str]:
    """A paragraph, or the rows of a table, each wrapped behind its term; lines that go on are further in than terms."""
    parts: list[tuple[str, str]] = []
    for line in block.splitlines():
        if row := TABLE_ROW.fullmatch(line):
            parts.append((row[1], row[2]))
        elif parts and (line.startswith(" ") or not parts[-1][0]):
            parts[-1] = parts[-1][0], f"{parts[-1][1]} {line.strip()}"
        else:
            parts.append(("", line))
    return [line for term, text in parts for line in _filled(text, term, " " * len(term))]


def _described(key: Key) -> list[str]:
    kind = plain_type(key.type)
    usual = METAVARS.get(inner_type(kind) if is_list(kind) else kind, key.field.name.upper())
    metavar = key.field.metadata.get("metavar", usual)
    name = f"--{key.name}.KEY VALUE" if is_dict(kind) else f"--{key.name} {metavar}"
    owners = f"{', '.join(key.entries)}: " if key.entries else ""
    groups = [line for group, about in key.above for line in _entry(f"--{group}", f"{owners}{about}")]
    return groups + _entry(
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


def _filled(text: str, indent: str, further: str | None = None) -> list[str]:
    width = max(LEAST_WIDTH, shutil.get_terminal_size().columns)
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent if further is None else further,
        break_long_words=False,
        break_on_hyphens=False,
    )
