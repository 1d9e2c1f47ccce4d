"""Reports with samples, of evaluations that never ran, and their page: for tests of what it holds and how it works."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from data.storage import Folder
from evaluation.judging.base import Outcome
from evaluation.metrics.base import Mark
from evaluation.report import AnswerRow, Results, SampleRow, write_report
from tests.support.reports import COLUMNS, make_job, make_results, measured, rate

HOSTILE = (
    "<script>window.ran = 1</script></script><!--<img src=x onerror='window.ran = 2'><b>bold</b>&amp; \u2028 {{ 7*7 }}"
)
CORRECT, WRONG = Mark("correct", "good"), Mark("wrong", "bad", "What code says.")


def answer(
    model: str, text: str, score: float | None = None, verdicts: str = "", *marks: Mark, reason: str = "", **more: Any
) -> AnswerRow:
    outcome = Outcome(score, verdicts in ("AA", "BB"), tuple(verdicts), reason)
    more = {"decoding": "greedy", "finish_reason": "stop", "tokens": 3, "against": "truth", "outcome": outcome, **more}
    return AnswerRow(model, text=text, marks=marks, **more)


def make_samples() -> list[SampleRow]:
    return [
        SampleRow("aa11", "Which river?", "The Isar.", [
            answer("mle", "The Rhine.", 0.0, "BA", WRONG), answer("cpo", "The Isar.", 1.0, "AB", CORRECT),
        ]),
        SampleRow("ab22", "Who?", "Otto.", [
            answer("mle", "Otto, of course.", 1.0, "AB", CORRECT),
            answer("cpo", "Nobody", 0.5, "AA", WRONG),
        ]),
        SampleRow("b333", "Why?", "Because.", [
            answer("mle", "No.", 0.5, "", WRONG, reason="the same"),
            answer("cpo", "w" * 300, None, "A?", WRONG, reason="unparsed", finish_reason="length", tokens=1),
        ]),
        SampleRow(HOSTILE, HOSTILE, HOSTILE, [
            answer("mle", HOSTILE, None, "", reason=HOSTILE), answer("cpo", HOSTILE, 0.0, "BA"),
        ]),
    ]  # fmt: skip


def results_of(samples: list[SampleRow], **changes: Any) -> Results:
    return replace(make_results(**changes), samples=samples)


PAGES: dict[str, str] = {}


def page_of(folder: Path, results: Results) -> str:
    """The page of the results, which is made once: most of that is to draw its figures."""
    page = folder / "report.html"
    if repr(results) not in PAGES:
        write_report(Folder(str(folder)), results)
        PAGES[repr(results)] = page.read_text(encoding="utf-8")
    page.write_text(PAGES[repr(results)], encoding="utf-8")
    return PAGES[repr(results)]


def hostile_results() -> Results:
    """Texts from models and users everywhere."""
    found = [rate(0.5, HOSTILE, HOSTILE, HOSTILE), measured(HOSTILE, "nll", 1.0), measured(HOSTILE, HOSTILE, 1.0)]
    job = make_job(models={HOSTILE: {"path": HOSTILE, "weights_sha256": HOSTILE}}, judge={"model": HOSTILE, HOSTILE: 1})
    job["data"] = {**job["data"], "name": HOSTILE}
    return Results(job, {"packages": {"torch": HOSTILE}}, found, make_samples(), [HOSTILE], COLUMNS)
