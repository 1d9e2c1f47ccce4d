"""How alike an answer and the ground truth are: the cosine similarity of their embeddings."""

from typing import TYPE_CHECKING

from evaluation.metrics.base import HIGHER, Column, Values
from evaluation.metrics.embeddings import EmbedderMetric

if TYPE_CHECKING:
    from evaluation.answers.answer_sets import AnswerSet

KEY = "similarity"


class Similarity(EmbedderMetric):
    """How similar each answer is to its ground truth."""

    name = "similarity"
    summary = "cosine similarity of the answer's embedding to the ground truth's"
    order = 50
    columns = (
        Column(
            KEY,
            "similarity to truth",
            "{:.4f}",
            "cosine similarity of the answer's embedding to the ground truth's",
            better=HIGHER,
            paired=True,
            difference="similarity minus baseline",
        ),
    )

    def values(self, answers: "AnswerSet") -> Values:
        truths = self.embed([group.response for group in answers.groups])
        return {KEY: (truths * self.embed(answers.texts)).sum(-1).tolist()}


METRIC = Similarity
