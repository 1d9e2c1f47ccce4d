"""report.html: tables, plots and samples of an evaluation in one file; see `data.page.rendering`."""

import base64
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from data.page.rendering import render
from evaluation.judging.base import Outcome
from evaluation.report.cells import BEST_MEANING, Cell
from evaluation.report.described import models, setup, summary, versions
from evaluation.report.markdown import ERROR_MEANING
from evaluation.report.plots import Panel, for_dark_page, svg
from evaluation.report.proposal import proposal
from evaluation.report.results import Results, SampleRow
from evaluation.report.tables import Table, opponent
from evaluation.report.verdict import verdict

MINUS = "\u2212"


def page(results: Results, tables: Sequence[Table], notes: Sequence[str], plots: Sequence[Sequence[Panel]]) -> str:
    """The HTML of an evaluation's report.

    Args:
        tables: of the results.
        notes: in the order in which they are to be read.
        plots: figures, as panels.
    """
    samples = [_sample(row) for row in results.samples]
    return render(
        "evaluation.report",
        "report_page",
        samples,
        summary=summary(results.job),
        verdict=verdict(results),
        typeset=_typeset,
        tables=tables,
        number=_number,
        figures=[_figure(panel) for panels in plots for panel in panels],
        proposal=proposal(results.job),
        error_meaning=ERROR_MEANING,
        best_meaning=BEST_MEANING,
        notes=notes,
        models=models(results.job),
        setup=setup(results.job),
        versions=versions(results.environment),
        samples=samples,
    )


def _figure(panel: Panel) -> dict[str, str]:
    """A plot for light pages and for dark ones."""
    light = svg([panel])
    drawn = {"light": light, "dark": for_dark_page(light)}
    return {"alt": panel.alt, **{name: base64.b64encode(image).decode() for name, image in drawn.items()}}


def _number(cell: Cell) -> Cell:
    """The cell, with the typographer's minus."""
    return replace(cell, value=cell.value.replace("-", MINUS))


def _typeset(line: str) -> str:
    """A sentence, with the typographer's minus where a number begins with one, and no number parted from its error."""
    return re.sub(r"(?<=[ (])-(?=\d)", MINUS, line).replace(" ± ", "\u00a0±\u00a0")


def _sample(row: SampleRow) -> dict[str, Any]:
    """A prompt with its answers; one that was judged against several opponents is there once, with all outcomes."""
    answers: dict[tuple[str, str], dict[str, Any]] = {}
    for answer in row.answers:
        entry = answers.setdefault(
            (answer.model, answer.decoding),
            {
                "model": answer.model,
                "decoding": answer.decoding,
                "text": answer.text,
                "tokens": answer.tokens,
                "cut": answer.finish_reason == "length",
                "marks": [asdict(mark) for mark in answer.marks],
                "outcomes": [],
            },
        )
        if answer.outcome is not None:
            entry["outcomes"].append(_outcome(answer.against, answer.outcome))
    return {"id": row.id, "prompt": row.prompt, "truth": row.truth, "answers": list(answers.values())}


def _outcome(against: str, outcome: Outcome) -> dict[str, Any]:
    """How a comparison came out: "win", "loss", "tie", "flip" (a tie that came from the order), or "none"."""
    kind = {1.0: "win", 0.0: "loss", None: "none"}.get(outcome.score, "flip" if outcome.flipped else "tie")
    verdicts = "".join(outcome.verdicts)
    return {"against": opponent(against), "kind": kind, "verdicts": verdicts, "reason": outcome.reason}
