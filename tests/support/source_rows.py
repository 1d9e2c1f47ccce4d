"""Rows of data sources as tests write them."""

import json
from collections.abc import Sequence
from typing import Any

from data.sources.examples import Example

TASK = "prompt-completion"
ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(60)]


def lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def listed(example: Example) -> list[tuple[Any, float | None]]:
    alternatives = example.alternatives or []
    return list(zip(alternatives, example.scores or [None] * len(alternatives), strict=True))
