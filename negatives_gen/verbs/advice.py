"""What the statistics of a set suggest to do otherwise, a line each."""

from typing import Any

from data.command.options import fields_of_entries
from data.manifest import REJECTS
from data.shards import LENDS
from negatives_gen.strategies import STRATEGIES

# Shares from which on there is advice: below them a set of any strategy and model has some of it.
MANY_CUT = 0.2
MANY_REPEATED = 0.2
MANY_REJECTED = 0.1


def advice(found: dict[str, Any]) -> list[str]:
    """Lines on what is unusual in a set and what changes it; none where nothing is.

    Args:
        found: see `negatives_gen.verbs.stats.statistics`.
    """
    lines = []
    limited = fields_of_entries(STRATEGIES, None)["max_new_tokens"].entries
    for name, one in found["strategies"].items():
        if name in limited and (one["cut"] or 0) >= MANY_CUT:
            lines.append(f"{one['cut']:.0%} of the samples ({name}) were cut at the limit: raise --max_new_tokens")
        if (one["duplicates"] or 0) >= MANY_REPEATED:
            lines.append(
                f"{one['duplicates']:.0%} of the negatives ({name}) have the text of another one of their group, which "
                "then counts twice: leave one strategy out, or ask it for fewer"
            )
    if found["rows_read"] and found["rows_rejected"] / found["rows_read"] >= MANY_REJECTED:
        reason = max(found["rejected_by_reason"], key=found["rejected_by_reason"].get, default="")
        lines.append(
            f"{found['rows_rejected'] / found['rows_read']:.0%} of the rows were rejected"
            f"{f', most as {reason!r}' if reason else ''}: {REJECTS} says of each why"
        )
    if found["lends_across_halves"]:
        lines.append(LENDS)
    return lines
