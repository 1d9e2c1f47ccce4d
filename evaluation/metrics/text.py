"""Statistics of answers' texts, which need neither a judge nor a second model: length, diversity, repetition.

Words are what whitespace separates, in lower case, so that models with different tokenizers compare. All but the
length in tokens, the share at the limit and early ends are of the text alone: on ground truths they give what to
compare with.
Longer texts repeat more words even when well written: read diversity beside length.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evaluation.metrics.base import LENGTH, Column, PromptMetric, Values

if TYPE_CHECKING:
    from data.schema import Group
    from evaluation.answers.answer_sets import AnswerSet
    from negatives_gen.models.engine import Sample

DISTINCT = (1, 2, 3)
# Of "repetition", as in its source.
REPETITION_N = 4
# Of "loops", as in its source: longest phrase looked for, shortest one that counts when said twice, and how often
# a shorter one must be said.
LONGEST_PHRASE = 90
SHORTEST_PHRASE = 3
OFTEN = 50


class Text(PromptMetric):
    """Measures of each answer's text by itself; what an answer is too short for it has no value of."""

    name = "text"
    summary = "length, diversity and repetition of the answers"
    order = 90
    columns = (
        Column("answer_tokens", "answer tokens", "{:.1f}", "length of the answers", LENGTH, unit="tokens", paired=True),
        Column(
            "answer_characters", "characters", "{:.1f}", "length of the answers as texts", LENGTH, unit="characters"
        ),
        Column("hit_limit", "hit limit", "{:.1%}", "share of answers cut at the limit", LENGTH, share=True),
        Column(
            "early_ends",
            "early ends",
            "{:.1%}",
            "share of answers that end by themselves before half of the ground truth's tokens",
            LENGTH,
            share=True,
            paired=True,
        ),
        Column("empty", "empty", "{:.1%}", "share of answers without a word", LENGTH, share=True),
        Column(
            "distinct_1",
            "distinct-1",
            "{:.3f}",
            "different words as a share of the words of an answer",
            LENGTH,
            share=True,
        ),
        Column("distinct_2", "distinct-2", "{:.3f}", "the same of pairs of words", LENGTH, share=True),
        Column("distinct_3", "distinct-3", "{:.3f}", "the same of three words in a row", LENGTH, share=True),
        Column(
            "repetition",
            "repetition",
            "{:.1%}",
            "share of the runs of four words of an answer that it has already said",
            LENGTH,
            share=True,
        ),
        Column(
            "loops", "loops", "{:.1%}", "share of answers that end in a phrase said again and again", LENGTH, share=True
        ),
    )

    def values(self, answers: "AnswerSet") -> Values:
        return text_values(answers.samples) | {"early_ends": early_ends(answers.samples, answers.groups)}


def text_values(answers: Sequence["Sample"]) -> dict[str, list[float | None]]:
    """Measures of each answer's text, by column.

    answer_tokens: tokens, EOS included.
    answer_characters: characters of the text.
    hit_limit: 1 if it was cut off at the length limit, else 0.
    empty: 1 without a word. What follows has no value of these, nor of texts of fewer than n words.
    distinct_1, distinct_2, distinct_3: different n-grams of words per n-gram of an answer (Li et al., NAACL 2016, there
        over all answers together; here per answer, which gives it a standard error and does not fall as answers are
        added).
    repetition: 1 - distinct_4 of an answer: seq-rep-4 of Welleck et al. (ICLR 2020), of words.
    loops: 1 if it ends in a repeated phrase, see `ends_in_loop`; an empty answer does not.
    """
    words = [answer.text.lower().split() for answer in answers]
    return {
        "answer_tokens": [len(answer.ids) for answer in answers],
        "answer_characters": [len(answer.text) for answer in answers],
        "hit_limit": [float(answer.finish_reason == "length") for answer in answers],
        "empty": [float(not text) for text in words],
        **{f"distinct_{n}": [distinct(text, n) if len(text) >= n else None for text in words] for n in DISTINCT},
        "repetition": [1 - distinct(text, REPETITION_N) if len(text) >= REPETITION_N else None for text in words],
        "loops": [float(ends_in_loop(text)) for text in words],
    }


def early_ends(answers: Sequence["Sample"], groups: Sequence["Group"]) -> list[float | None]:
    """1 for an answer that ended by itself with fewer than half of its ground truth's tokens, EOS included; else 0.

    Args:
        groups: with the ground truths, in the tokens of the model that answered.
    """
    pairs = zip(answers, groups, strict=True)
    return [float(a.finish_reason == "stop" and 2 * len(a.ids) < len(g.response_ids)) for a, g in pairs]


def distinct(words: Sequence[str], n: int) -> float:
    """Different n-grams per n-gram, from 0 to 1, of a text of at least n words."""
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams)


def ends_in_loop(words: Sequence[str]) -> bool:
    """Whether a text ends in a phrase said again and again: "Repetition %" of Holtzman et al. (ICLR 2020).

    By their code (github.com/ari-holtzman/degen, metrics/repetition.py), on words instead of tokens: of all phrases
    that the text could end in, take the one repeated most often, the shortest of several. It is a loop if it has three
    words or more and stands there at least twice in a row, or if it stands there more than fifty times.
    """
    phrase, times = 1, 1
    for n in range(1, min(LONGEST_PHRASE, len(words) // 2) + 1):
        count = 1
        while words[-n * (count + 1) : -n * count] == words[-n:]:
            count += 1
        if count > times:
            phrase, times = n, count
    return times > 1 and (phrase >= SHORTEST_PHRASE or times > OFTEN)


METRIC = Text
