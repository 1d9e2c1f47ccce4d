"""Rows for the report's page of samples: what was asked, the ground truth and every answer with what is known of it."""

from evaluation.answers.answer_sets import AnswerSet
from evaluation.measure import Gathered
from evaluation.report.results import AnswerRow, SampleRow
from evaluation.subject import Part


def sample_rows(gathered: Gathered, part: Part) -> list[SampleRow]:
    """One row per prompt of the part; an answer is there once for each opponent that it was compared with.

    Without answers there are none.
    """
    asked = [answers for answers in gathered.answer_sets if answers.asked]
    rows = []
    if not asked:
        return rows
    for index in part.prompts:
        group = asked[0].groups[index]
        answers = [row for a in asked for row in _answer_rows(gathered, a, index)]
        rows.append(SampleRow(group.id, group.query, group.response, answers))
    return rows


def _answer_rows(gathered: Gathered, answers: AnswerSet, index: int) -> list[AnswerRow]:
    sample = answers.samples[index]
    rows = [AnswerRow(answers.model, answers.decoding, sample.text, sample.finish_reason, len(sample.ids))]
    for evidence in gathered.of_answers:
        rows = [annotated for row in rows for annotated in evidence.annotated(row, answers, index)]
    return rows
