"""The HTML page of `inspect`: groups to search, filter and sort, in one file; see `data.page.rendering`."""

import math
from collections.abc import Sequence
from typing import Any

from data.page.rendering import is_rendered, render
from data.ranks import ranks_of
from data.schema import Group
from negatives_gen.strategies import STRATEGIES


def is_page(content: bytes) -> bool:
    """Whether a file is such a page."""
    return is_rendered(content, "group_page")


def page(path: str, groups: Sequence[Group], signals: Sequence[str], rank_by: str, total: int, split: str) -> str:
    """The HTML page of some groups of a negative set.

    Args:
        path: of the set, as its title.
        groups: what to show.
        signals: ranking signals of the set; `rank_by` is the one chosen at first.
        total: groups that the split has, shown or not.
    """
    data = {
        "signals": list(signals),
        "rank_by": rank_by,
        "total": total,
        "split": split,
        "edited": [name for name in STRATEGIES.names() if STRATEGIES.load(name).edits_truth],
        "groups": [_group(group, signals) for group in groups],
    }
    return render("negatives_gen.verbs", "group_page", data, path=path)


def _group(group: Group, signals: Sequence[str]) -> dict[str, Any]:
    ranks = [ranks_of(group.negatives, signal) for signal in signals]
    return {
        "id": group.id,
        "split": group.split,
        "prompt": group.prompt,
        "truth": {
            "text": group.response,
            "logp": _value(group.reference_logp),
            "tokens": len(group.response_ids),
            "reach": group.in_support,
        },
        "negatives": [
            {
                "strategy": c.strategy,
                "text": c.text,
                "logp": _value(c.reference_logp),
                "tokens": len(c.ids),
                "end": c.finish_reason,
                "source": c.source_id,
                "similarity": [_value(c.similarity.get(name)) for name in signals],
                "ranks": [by_signal[place] for by_signal in ranks],
            }
            for place, c in enumerate(group.negatives)
        ],
    }


def _value(number: float | None) -> float | None:
    """A float32 in as few digits as tell it from every other one; None where it is no number."""
    return float(f"{number:.9g}") if number is not None and math.isfinite(number) else None
