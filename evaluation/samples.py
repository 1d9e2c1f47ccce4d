"""Rows for the report's page of samples: what was asked, the ground truth and every answer with its verdicts."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from evaluation.measure import Answers
from evaluation.report.results import AnswerRow, SampleRow


def sample_rows(every: Sequence[Answers], kept: Iterable[int], *, checkable: bool) -> list[SampleRow]:
    """One row per kept prompt; an answer is there once for each opponent that it was compared with.

    Args:
        checkable: whether code can say which answers are correct.
    """
    asked = [answers for answers in every if answers.asked]
    rows = []
    for index in kept:
        group = asked[0].groups[index]
        answers = [row for a in asked for row in _answer_rows(a, index, checkable)]
        rows.append(SampleRow(group.id, group.query, group.response, answers))
    return rows


def _answer_rows(answers: Answers, index: int, checkable: bool) -> list[AnswerRow]:
    sample = answers.samples[index]
    right = bool(answers.right[index]) if checkable else None
    row = AnswerRow(answers.model, answers.decoding, sample.text, sample.finish_reason, len(sample.ids), correct=right)
    judged = [(opponent, outcomes[index]) for opponent, outcomes in answers.outcomes.items()]
    return [
        replace(row, score=o.score, verdicts=o.verdicts, against=opponent, reason=o.reason) for opponent, o in judged
    ] or [row]
