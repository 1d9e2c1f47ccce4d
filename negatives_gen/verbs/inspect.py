"""`python -m negatives_gen inspect DIR`: groups side by side, in the terminal or as an HTML page."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from data.command.cleaning import printable
from data.command.errors import UserError, did_you_mean, exit_on_user_error
from data.command.options import load_config, option, resolve_path
from data.command.terminal import say
from data.command.usage import answered
from data.command.values import require_positive
from data.command.wording import counted
from data.page.rendering import MARKED_WITHIN
from data.places import place_of, refuse_foreign
from data.ranks import ranks_of
from data.schema import Group
from data.shards import NegativeSet
from data.storage import Folder
from negatives_gen.signals import models_of
from negatives_gen.verbs.group_page import is_page, page
from negatives_gen.verbs.reading import check_split, console, count_groups, find_group, groups_of, number

if TYPE_CHECKING:
    from rich.console import RenderableType

USAGE = "python -m negatives_gen inspect DIR [--row ID] [--limit N] [--html FILE]"
ABOUT = """
Show groups of a negative set: prompt, ground truth and negatives with strategy, ranking signals, rank and the reference
model's log-probability; of a ground truth also whether it was in reach of the sampler. The rank is derived: the ground
truth has 0, then falling values of one signal, those without a value ("-") last. With --html a page to look
through, search, filter and sort; it is one file that needs no network.
"""

LIMIT = 3
HTML_LIMIT = 200
ID_DIGITS = 12


@dataclass
class InspectConfig:
    """What to show, and where."""

    row: str | None = option(None, "show the one group whose id begins so", metavar="ID")
    limit: int | None = option(None, f"groups to show, at most (default: {LIMIT}, in a page {HTML_LIMIT})")
    split: str = option("all", "train, test or all", metavar="HALF")
    rank_by: str | None = option(
        None, "ranking signal that decides the rank (default: the set's first)", metavar="SIGNAL"
    )
    html: str | None = option(None, "write a page to this file instead of printing", metavar="FILE.html")

    def check(self) -> None:
        check_split(self.split)
        require_positive(self, "limit")


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, InspectConfig, usage=USAGE, about=ABOUT):
        return
    if not argv or argv[0].startswith("-"):
        raise UserError("python -m negatives_gen inspect needs the negative set: inspect DIR [--row ID] ...")
    inspect(argv[0], load_config(InspectConfig, argv[1:], command="python -m negatives_gen inspect"))


def inspect(path: str, config: InspectConfig) -> None:
    """Print groups, or write them to a page.

    Raises:
        UserError: no such set, row, split or signal, or the page cannot be written.
    """
    config.check()
    negatives = NegativeSet(resolve_path(path))
    signal = _signal(negatives, config.rank_by)
    place = _place(config.html) if config.html else None
    if config.row is not None:
        groups = [find_group(negatives, config.row)]
    else:
        limit = config.limit or (HTML_LIMIT if config.html else LIMIT)
        groups = list(islice(groups_of(negatives, config.split), limit))
    if place:
        folder, name = place
        total = count_groups(negatives, config.split)
        folder.write(name, page(path, groups, negatives.signals, signal, total, config.split).encode())
        say(f"{config.html}: {len(groups)} of {counted(total, 'group')}, from {negatives.manifest.origin}")
        return
    out = console()
    for group in groups:
        out.print(*group_view(group, negatives.signals, signal), sep="\n")
    shown = f"{len(groups)} of {counted(len(negatives), 'group')}"
    if config.split != "all":
        shown = f"{counted(len(groups), 'group')} of split {config.split}"
    models = "".join(f", {option} {model}" for option, model in models_of(signal, negatives.manifest.job).items())
    out.print(f"{shown}, ranked by {signal}{models}; from {negatives.manifest.origin}")


def group_view(group: Group, signals: Sequence[str], rank_by: str) -> "Sequence[RenderableType]":
    """A group for the terminal: its id, its prompt, and a table of ground truth and negatives in the order of rank."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, expand=True, show_lines=True, pad_edge=False)
    for name in ("rank", "who"):
        table.add_column(name, no_wrap=True)
    table.add_column("continuation", ratio=1, overflow="fold")
    for name in ("ranking signals", "reference, length"):
        table.add_column(name, justify="right", no_wrap=True)
    truth = Text(printable(group.response), style="green")
    facts = _facts(group.reference_logp, len(group.response_ids), None)
    if group.in_support is not None:
        facts += f"\nin reach {'yes' if group.in_support else 'no':>7}"
    table.add_row("0", "truth", truth, "", facts, style="bold")
    ranked = zip(ranks_of(group.negatives, rank_by), group.negatives, strict=True)
    for rank, candidate in sorted(ranked, key=lambda pair: pair[0]):
        text = Text(printable(candidate.text))
        if candidate.source_id is not None:
            text.append(f"\nfrom group {candidate.source_id[:ID_DIGITS]}", style="dim")
        values = ((name, candidate.similarity.get(name)) for name in signals)
        similarity = "\n".join(f"{name} {number(value, 3):>6}" for name, value in values)
        facts = _facts(candidate.reference_logp, len(candidate.ids), candidate.finish_reason)
        table.add_row(str(rank), candidate.strategy, text, similarity, facts)
    title = Text(f"group {group.id} ({group.split})", style="bold")
    return title, Text(printable(group.prompt), style="cyan"), table


def _facts(logp: float | None, tokens: int, finish_reason: str | None) -> str:
    per_token = None if logp is None or not tokens else logp / tokens
    facts = {"log p": number(logp, 2), "per token": number(per_token, 2), "tokens": str(tokens)}
    if finish_reason is not None:
        facts["ends by"] = finish_reason
    return "\n".join(f"{name} {value:>7}" for name, value in facts.items())


def _signal(negatives: NegativeSet, asked: str | None) -> str:
    if asked is None:
        return negatives.signals[0]
    asked = negatives.manifest.signal_name(asked)
    if asked not in negatives.signals:
        raise UserError(
            f"--rank_by asks for '{asked}', but negative set '{negatives.folder.path}' holds "
            f"{', '.join(negatives.signals)}.{did_you_mean(asked, negatives.signals)} `extend` adds a signal."
        )
    return asked


def _place(html: str) -> tuple[Folder, str]:
    """Where the page may be written. Raises UserError, see `data.places`."""
    folder, name = place_of(html, "--html", "page.html")
    refuse_foreign(folder, name, "--html", is_page, MARKED_WITHIN)
    return folder, name
