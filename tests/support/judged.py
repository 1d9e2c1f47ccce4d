"""What tests of a judge behind a faulty server share: the faults, the pairs that it judges, what it keeps."""

import random
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.command.options import make_config
from evaluation.judging import make_judge
from evaluation.judging.base import Comparison, Judge, JudgeOptions
from tests.support.chat_server import GARBAGE, HALF, NOTHING, ChatAPIStub, Fault, said

KEY = "sk-a-secret-of-the-tests"
TIMEOUT = 10.0  # seconds, of the test that waits for it: a busy machine answers before
FAULTS: list[Fault] = [
    (429, {"Retry-After": "0.05"}, {"error": {"message": "slow down"}}),
    (429, {"retry-after-ms": "30"}, ""),
    (429, {}, ""),
    (500, {}, "down"),
    (502, {"Content-Type": "text/html"}, "<html>\nbad gateway</html>"),
    (408, {}, ""),
    GARBAGE,
    NOTHING,
    HALF,
    (200, {}, {"id": "1", "object": "chat.completion", "choices": []}),
    (200, {}, {"id": "1", "object": "chat.completion", "choices": [{"index": 0}]}),
    (200, {}, "[]"),
    (200, {}, '"A"'),
    (200, {}, ""),
    (200, {"Content-Encoding": "gzip"}, "no gzip"),
    (200, {"Content-Encoding": "deflate"}, "no deflate \u00ff"),
    (200, {}, "[" * 200_000),
]


def longer(request: dict[str, Any]) -> tuple[str, str]:
    """A judge that prefers the longer answer."""
    a, b = (said(request).split(f"Response {letter}: ")[1].split("\n")[0] for letter in "AB")
    return ("A" if len(a) > len(b) else "B"), "stop"


def random_faults(share: float, hanging: Sequence[int] = ()) -> Callable[[int], Fault | None]:
    """Faults of so many of the requests; those of these numbers hang until the client gives them up."""

    def fault_of(number: int) -> Fault | None:
        draw = random.Random(number)
        if number in hanging:
            return TIMEOUT + 1
        return draw.choice(FAULTS) if draw.random() < share else None

    return fault_of


def judge_by(server: ChatAPIStub, store: Path, **options: Any) -> Judge:
    settings = {"model": "m", "base_url": server.url, "timeout": 60, "retries": 30}
    return make_judge(make_config(JudgeOptions, **{**settings, **options}), str(store))


def pairs(number: int) -> list[Comparison]:
    """The answer to every third question is the longer one."""
    return [Comparison(str(n), f"Question {n}?", "x" * (n % 3), "y") for n in range(number)]


def scores(number: int) -> list[float]:
    return [float(n % 3 == 2) for n in range(number) if n % 3 != 1]


def unequal(number: int) -> list[Comparison]:
    return [c for c in pairs(number) if len(c.answer) != len(c.other)]


def rows(store: Path) -> list[str]:
    if not (store / "verdicts.sqlite").exists():
        return []
    with sqlite3.connect(store / "verdicts.sqlite") as connection:
        return [key for (key,) in connection.execute("SELECT key FROM verdicts")]
