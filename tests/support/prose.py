"""README.md and docs/: the parts of a Markdown page that tests hold against the code."""

import functools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import ROOT

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
ASSIGNMENT = re.compile(r"\w+=.*")
ANSI_QUOTED = re.compile(r"\$'([^']*)'")
NEW_LINE = "\1"  # stands for one while lines are told apart


@dataclass(frozen=True)
class Page:
    """A Markdown file.

    Attributes:
        text: all of it.
        prose: the same without its fenced blocks.
    """

    path: Path
    text: str
    prose: str

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def links(self) -> list[str]:
        """Targets of links and images, but for those on the web."""
        found = LINK.findall(re.sub(r"`[^`\n]*`", "", self.prose))
        return [target for target in found if not re.match(r"\w+:", target)]

    @property
    def anchors(self) -> set[str]:
        """What links can point at: headings as GitHub writes them."""
        return {anchor(heading) for heading in HEADING.findall(self.prose)}

    def blocks(self, language: str) -> list[str]:
        """The fenced blocks of a language."""
        return [body for _, said, body in FENCE.findall(self.text) if said == language]

    def section(self, heading: str) -> str:
        """The text between a heading and the next one of its level or above."""
        # As long as the text, so that places are the same; a comment in a block is no heading.
        outline = FENCE.sub(lambda match: re.sub("#", " ", match[0]), self.text)
        (start,) = re.finditer(rf"^(#+) {re.escape(heading)} *$", outline, re.MULTILINE)
        end = re.compile(rf"^#{{1,{len(start[1])}}} ", re.MULTILINE).search(outline, start.end())
        return self.text[start.end() : end.start() if end else None]

    def table(self, heading: str) -> list[list[str]]:
        """The cells of the first table below a heading, without its head."""
        lines = re.search(r"(^\|.*\n)+", self.section(heading) + "\n", flags=re.MULTILINE)
        assert lines is not None, heading
        rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in lines[0].splitlines()]
        return [[cell.strip().replace("\\|", "|") for cell in row] for row in rows[2:]]


@functools.cache
def page(name: str) -> Page:
    """A page by its path in the repository."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return Page(ROOT / name, text, FENCE.sub("", text))


def pages() -> list[Page]:
    """README.md and all of docs/."""
    return [page(str(path.relative_to(ROOT))) for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]]


def anchor(heading: str) -> str:
    """A heading as GitHub makes a link of it."""
    words = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def code_names(cell: str) -> list[str]:
    """What stands in a table's cell as code."""
    return re.findall(r"`([^`]+)`", cell)


def command_lines(block: str) -> list[list[str]]:
    """The simple commands of a bash block as words, without their assignments and comments; $NAMEs filled in."""
    lines, found = block.replace("\\\n", " "), []
    for name, value in re.findall(r'^(\w+)="([^"]*)"', lines, flags=re.MULTILINE):
        lines = re.sub(rf"\$(?:{name}\b|{{{name}}})", lambda _, value=value: value, lines)
    lines = ANSI_QUOTED.sub(lambda match: "'" + match[1].replace("\\n", NEW_LINE) + "'", lines)
    for line in lines.splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        words.whitespace_split, words.commenters = True, "#"
        command: list[str] = []
        for word in [*words, ";"]:
            if not re.fullmatch(r"[;&|]+", word):
                command.append(word.replace(NEW_LINE, "\n"))
            elif command:
                start = next((i for i, one in enumerate(command) if not ASSIGNMENT.fullmatch(one)), len(command))
                found += [command[start:]] if command[start:] else []
                command = []
    return found


def ours(words: list[str]) -> tuple[str, list[str]] | None:
    """The module of ours that a command runs, and the words behind it; None of another's command."""
    if words[:4] == ["docker", "compose", "run", "--rm"] and words[4] == "submit":
        return "negatives_gen", words[5:]
    if words[0] == "cpo":
        return "cpo", words[1:]
    at = next((i for i, word in enumerate(words) if word == "-m"), None)
    runs = at is not None and (words[at - 1].endswith("python") or words[:2] == ["accelerate", "launch"])
    return (words[at + 1], words[at + 2 :]) if runs and at is not None else None
