"""How well an answer identifies its prompt: whether an embedder finds it among 64 prompts by the answer alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.metrics.base import HIGHER, Column, PromptEvidence, Values
from evaluation.metrics.embeddings import EmbedderMetric

if TYPE_CHECKING:
    import numpy as np

    from data.schema import Group
    from evaluation.answers.answer_sets import AnswerSet
    from evaluation.subject import Part

KEY, RANK = "relevance", "reciprocal_rank"
# Prompts that an answer is compared with, its own among them; chance finds that one once in so many.
PROMPTS = 64
# Similarities no farther apart are equal: the embedding of one text differs by less from batch to batch.
TIE = 1e-6


class Relevance(EmbedderMetric):
    """Whether each answer is more similar to its own prompt than to other prompts of the evaluation.

    A prompt is what a person asked, without what a template put around it. The other ones are drawn for each prompt
    alike for all models; what is asked twice is one prompt.
    """

    name = "relevance"
    summary = f"how often the embedder finds an answer's own prompt among {PROMPTS}"
    order = 55
    columns = (
        Column(
            KEY,
            "prompt identified",
            "{:.1%}",
            f"share of answers whose embedding is more similar to their own prompt's than to that of {PROMPTS - 1} "
            "others; equally similar ones share it",
            better=HIGHER,
            share=True,
            paired=True,
        ),
        Column(
            RANK,
            "reciprocal rank",
            "{:.3f}",
            "mean of 1 / rank of an answer's own prompt among these, by similarity",
            better=HIGHER,
            share=True,
            paired=True,
        ),
    )

    def values(self, answers: "AnswerSet") -> Values:
        others = draw_others(answers.groups, self.evaluation.seed)
        prompts, said = self.embed([group.query for group in answers.groups]), self.embed(answers.texts)
        found = [
            found_by(prompts[[own, *drawn]] @ said[own]) if drawn else (None, None) for own, drawn in enumerate(others)
        ]
        return {KEY: [share for share, _ in found], RANK: [rank for _, rank in found]}

    def gather(self, answer_sets: Sequence["AnswerSet"]) -> "RelevanceEvidence":
        asked = [answers for answers in answer_sets if self.is_of(answers)]
        values = {(a.model, a.decoding): self.values(a) for a in asked}
        texts = len({group.query for group in asked[0].groups}) if asked else PROMPTS
        return RelevanceEvidence(self.columns, values, texts=texts)


@dataclass(frozen=True, kw_only=True)
class RelevanceEvidence(PromptEvidence):
    """Values of metric `relevance`, with a note where there are too few prompts.

    Attributes:
        texts: different prompts of the evaluation.
    """

    texts: int

    def notes(self, part: "Part") -> list[str]:
        if self.texts >= PROMPTS:
            return []
        if self.texts < 2:
            return ["No answer could be told to be to its own prompt: there is no other one."]
        fewer = f"{self.texts} prompts, not {PROMPTS}, as there are no more"
        return [f"An answer's own prompt is looked for among {fewer}: chance finds one in {self.texts}."]


def draw_others(groups: Sequence["Group"], seed: int) -> list[list[int]]:
    """For each group up to PROMPTS - 1 others, no two of them of one query and none of the group's own: indices.

    They follow from the seed, the group's id and the different queries, whatever order the groups are in.
    """
    import numpy as np

    from evaluation.answers.generations import prompt_seed

    index = {group.query: i for i, group in enumerate(groups)}
    pool = sorted(index)
    place = {query: i for i, query in enumerate(pool)}
    drawn = []
    for group in groups:
        chosen = np.random.default_rng(prompt_seed(seed, group.id)).choice(
            len(pool) - 1, size=min(PROMPTS, len(pool)) - 1, replace=False
        )
        # The group's own place is passed over.
        drawn.append([index[pool[i + (i >= place[group.query])]] for i in chosen.tolist()])
    return drawn


def found_by(similarities: "np.ndarray") -> tuple[float, float]:
    """What is expected of the first one's place among all where equal ones come in random order.

    Args:
        similarities: [n] of an answer to prompts, the first of them its own.

    Returns:
        Share of the orders in which it comes first; mean of 1 / rank.
    """
    above = int((similarities > similarities[0] + TIE).sum())
    equal = int((abs(similarities - similarities[0]) <= TIE).sum())
    ranks = range(above + 1, above + equal + 1)
    return (0.0 if above else 1 / equal), sum(1 / rank for rank in ranks) / equal


METRIC = Relevance
