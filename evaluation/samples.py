"""Rows for the report's page of samples: a prompt, its ground truth and every answer with its verdicts."""

from collections.abc import Iterable, Sequence

from data import facts
from evaluation.measure import Answers
from evaluation.report.results import AnswerRow, SampleRow


def sample_rows(every: Sequence[Answers], kept: Iterable[int], *, checkable: bool) -> list[SampleRow]:
    """One row per kept prompt; an answer that was judged against several opponents shows the first."""
    asked = [answers for answers in every if answers.asked]
    rows = []
    for index in kept:
        group = asked[0].groups[index]
        answers = [_answer_row(a, int(index), checkable) for a in asked]
        rows.append(SampleRow(group.id, group.prompt, group.response, answers))
    return rows


def _answer_row(answers: Answers, index: int, checkable: bool) -> AnswerRow:
    sample = answers.samples[index]
    against, outcomes = next(iter(answers.outcomes.items()), ("", None))
    outcome = outcomes[index] if outcomes else None
    return AnswerRow(
        model=answers.model,
        decoding=answers.decoding,
        text=sample.text,
        finish_reason=sample.finish_reason,
        tokens=len(sample.ids),
        score=outcome.score if outcome else None,
        verdicts=outcome.verdicts if outcome else (),
        against=against,
        reason=outcome.reason if outcome else "",
        correct=facts.is_correct(answers.groups[index].prompt, sample.text) if checkable else None,
    )
