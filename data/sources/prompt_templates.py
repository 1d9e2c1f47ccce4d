"""`--prompt_template`: prompts written from the columns of a row, by a text with `{column}`s or a Jinja file."""

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.command.errors import UserError, first_line
from data.command.options import resolve_path
from data.sources.encode import Problem
from data.sources.row_paths import EACH, NOWHERE, Path
from data.sources.template_bounds import Endless

JINJA = (".jinja", ".jinja2", ".j2")
FAILED = "prompt template failed"


@dataclass(frozen=True)
class Unfilled:
    """What stands in the place of a prompt that a template could not write: reason and detail of a reject."""

    problem: Problem


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with places for what a row says.

    Attributes:
        syntax: "text" or "jinja".
        text: of the template, which decides what it writes.
        places: that it reads.
        fill: row -> prompt, or why there is none. Raises Endless.
    """

    syntax: str
    text: str
    places: tuple[Path, ...]
    fill: Callable[[Mapping[str, Any]], str | Unfilled]


def read_template(written: str) -> PromptTemplate:
    """The template of the option: a text, or of a name that ends in .jinja or .j2 the file.

    Raises:
        UserError: the file cannot be read, the template has a fault, or it reads no column.
    """
    template = _jinja(written) if written.endswith(JINJA) else _plain(written)
    if not template.places:
        raise UserError(
            f"--prompt_template {_short(written)} names no column: all prompts would be one. Write {{NAME}}."
        )
    return template


def _plain(text: str) -> PromptTemplate:
    """Braces that are not meant as a column's are doubled, as in Python's format strings."""
    if r"\n" in text:
        raise UserError(
            f"--prompt_template {_short(text)} holds a backslash and an n, not a new line. Write it as $'...' in a "
            "shell, in the YAML file, or as a Jinja file."
        )
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"--prompt_template {_short(text)}: {error}. Double braces that are no column's.") from error
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise UserError(f"--prompt_template {_short(text)}: only {{column}} is written, without : or !.")
    pieces = [(said, None if name is None else _place(name)) for said, name, _, _ in parts]

    def fill(row: Mapping[str, Any]) -> str | Unfilled:
        written = []
        for said, place in pieces:
            written.append(said)
            if place is not None:
                value = place.find(row)
                if problem := _unwritable(place.text, value):
                    return problem
                written.append(str(value))
        return "".join(written)

    places = {place.text: place for _, place in pieces if place is not None}
    return PromptTemplate("text", text, tuple(places.values()), fill)


def _place(name: str) -> Path:
    path = Path.of(name)
    if EACH in path.steps:
        raise UserError(f"--prompt_template: {{{name}}} is a list. Use a Jinja file to write one.")
    return path


def _unwritable(name: str, value: Any) -> Unfilled | None:
    if value is NOWHERE or value is None:
        return Unfilled((FAILED, f"{name} is {'missing' if value is NOWHERE else 'null'}"))
    if not isinstance(value, str | int | float):
        return Unfilled((FAILED, f"{name} is {type(value).__name__}, no text"))
    return None


def _jinja(name: str) -> PromptTemplate:
    """In a sandbox: it is given a row and nothing else of the process. Blocks are trimmed as chat templates' are."""
    from jinja2 import StrictUndefined, TemplateError, meta

    from data.sources.bounded_jinja import BoundedEnvironment

    try:
        with open(resolve_path(name), encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = first_line(getattr(error, "strerror", None) or error)
        raise UserError(f"cannot read --prompt_template '{name}': {why}. Give an existing Jinja file.") from error
    environment = BoundedEnvironment(
        undefined=StrictUndefined, finalize=_finalize, trim_blocks=True, lstrip_blocks=True
    )
    try:
        tree = environment.parse(text)
        columns = sorted(meta.find_undeclared_variables(tree) - environment.globals.keys())
        others = list(meta.find_referenced_templates(tree))
        template = environment.bounded(tree)
    except (TemplateError, RecursionError) as error:
        number = getattr(error, "lineno", None)  # of a TemplateSyntaxError
        line = f", line {number}" if number else ""
        raise UserError(f"--prompt_template '{name}'{line}: {first_line(error)}. Correct the template.") from error

    if others:
        other = f", '{others[0]}'" if others[0] else ""
        raise UserError(f"--prompt_template '{name}' reads another file{other}. Write all of it in one.")

    def fill(row: Mapping[str, Any]) -> str | Unfilled:
        try:
            return environment.write(template, {column: row.get(column) for column in columns})
        except Endless as error:
            raise Endless(f"--prompt_template '{name}' {error}") from error
        except Exception as error:  # templates are programs, and fail as they like
            return Unfilled((FAILED, first_line(error)))

    return PromptTemplate("jinja", text, tuple(map(Path.of, columns)), fill)


def _finalize(value: Any) -> Any:
    """A null that is written would read as "None"."""
    if value is None:
        raise ValueError("a value that it writes is null")
    return value


def _short(text: str) -> str:
    return f"'{text[:60]}{'...' if len(text) > 60 else ''}'"
