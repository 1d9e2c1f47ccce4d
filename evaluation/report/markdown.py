"""report.md, and tables as Markdown."""

import re
from collections.abc import Sequence

from data.command.terminal import one_line
from evaluation.report.cells import BEST_MEANING
from evaluation.report.described import models, setup, summary, versions
from evaluation.report.proposal import proposal
from evaluation.report.results import Results
from evaluation.report.tables import Table, meanings
from evaluation.report.verdict import Verdict, verdict

ERROR_MEANING = "Behind ±: one standard error; there is none of equal values, which show no spread."


def markdown(results: Results, tables: Sequence[Table], notes: Sequence[str], plots: Sequence[tuple[str, str]]) -> str:
    """The report as Markdown.

    Args:
        tables: of the results.
        notes: in the order in which they are to be read.
        plots: file and what it shows, of each.
    """
    job = results.job
    blocks = ["# Evaluation", escaped(summary(job)), *in_words(verdict(results))]
    blocks += [block for table in tables for block in (f"## {escaped(table.title)}", in_markdown(table))]
    if proposal(job):
        blocks.append(proposal(job))
    if plots:
        blocks += ["## Plots", *(f"![{escaped(alt)}]({file})" for file, alt in plots)]
    explained = [f"- {escaped(heading)}: {escaped(meaning)}." for heading, meaning in meanings(tables).items()]
    blocks += ["## Columns", "\n".join([*explained, f"- {ERROR_MEANING}", f"- {BEST_MEANING}."])]
    if notes:
        blocks += ["## Notes", "\n".join(f"- {escaped(note)}" for note in notes)]
    checkpoints = [
        f"- {escaped(name)}: {code(path)}, weights {weights}, tokenizer {tokenizer}"
        for name, path, weights, tokenizer in models(job)
    ]
    if checkpoints:
        blocks += ["## Models", "\n".join(checkpoints)]
    blocks += ["## Set-up", "\n".join(f"- {escaped(key)}: {escaped(value)}" for key, value in setup(job))]
    packages = ", ".join(f"{escaped(name)} {escaped(version)}" for name, version in versions(results.environment))
    blocks += ["## Made with", packages + "."]
    return "\n\n".join(blocks) + "\n"


def in_words(found: Verdict) -> list[str]:
    """The verdict as blocks of Markdown."""
    lines = "\n".join(f"- {escaped(line)}" for line in found.lines)
    return [block for block in (lines, escaped(found.also), escaped(found.hedge)) if block]


def in_markdown(table: Table) -> str:
    """A table, its columns padded so that it also reads as plain text."""
    lines = [[escaped(heading) for heading in table.headings]]
    lines += [[f"**{escaped(c.text)}**" if c.best else escaped(c.text) for c in row] for row in table.rows]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    rows = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *rows[1:]])


def escaped(text: str) -> str:
    """A text as Markdown of one line: no markup of it, and no end of a table's cell."""
    line = one_line("".join(sign if sign.isprintable() else " " for sign in text))
    return re.sub(r"([\\`|*\[\]])", r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;")


def code(text: str) -> str:
    """A text in a span of code, whose fence is longer than any inside."""
    line = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence}{line}{fence}" if fence == "`" else f"{fence} {line} {fence}"
