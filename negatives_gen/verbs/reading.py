"""Finding groups in a negative set, and printing them: what the reading verbs share."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from data.command.cleaning import printable
from data.command.errors import UserError
from data.command.terminal import width
from data.schema import Group
from data.shards import NegativeSet
from data.sources.splits import SPLITS

if TYPE_CHECKING:
    from rich.console import Console

SHOWN_MATCHES = 3


def check_split(split: str) -> None:
    """Raise UserError for a split there is not."""
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'. Use one of {', '.join(SPLITS)}.")


def groups_of(negatives: NegativeSet, split: str) -> Iterator[Group]:
    """The groups of a split ("train", "test" or "all"), one shard read after another as they are asked for."""
    return (group for group in negatives.groups() if split in ("all", group.split))


def count_groups(negatives: NegativeSet, split: str) -> int:
    """How many groups a split has; reads the shards unless it is "all"."""
    if split == "all":
        return len(negatives)
    return sum(table["split"].to_pylist().count(split) for table in negatives.tables(["split"]))


def find_group(negatives: NegativeSet, prefix: str) -> Group:
    """The group whose id begins with `prefix`.

    Raises:
        UserError: no group's id begins so, or those of several do.
    """
    found: list[tuple[str, int, int]] = []
    for shard, table in enumerate(negatives.tables(["id"])):
        ids = table["id"].to_pylist()
        found += [(name, shard, row) for row, name in enumerate(ids) if prefix and name.startswith(prefix)]
    where = f"negative set '{negatives.folder.path}'"
    if not found:
        for reject in negatives.rejects():
            if prefix and reject.id.startswith(prefix):
                raise UserError(f"row '{reject.id}' is no group of {where}: {reject.reason} ({reject.detail}).")
        raise UserError(f"no group of {where} has an id that begins with '{prefix}'. Without --row ids are shown.")
    exact = [match for match in found if match[0] == prefix]
    if len(found) > 1 and not exact:
        some = ", ".join(name for name, _, _ in found[:SHOWN_MATCHES])
        raise UserError(
            f"--row '{prefix}' fits {len(found)} groups of {where} ({some}{' ...' * (len(found) > SHOWN_MATCHES)}). "
            "Give more digits of the id."
        )
    _, shard, row = (exact or found)[0]
    return negatives.shard(shard)[row]


def number(value: float | None, digits: int) -> str:
    """A number as tables show it; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def console() -> "Console":
    """Where tables are printed: as wide as `data.command.terminal.width`."""
    from rich.console import Console
    from rich.segment import Segment

    class CleanConsole(Console):
        """Spells out what could steer a terminal, in whatever is printed, see `data.command.cleaning.printable`."""

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text), style, control)

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without UTF-8 shows "?"
    return CleanConsole(width=width(), highlight=False, markup=False, emoji=False)
