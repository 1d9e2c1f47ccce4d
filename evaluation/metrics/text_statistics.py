"""Statistics of answers' texts, which need neither a judge nor a second model: length, diversity, repetition.

Words are what whitespace separates, in lower case, so that models with different tokenizers compare. All but the
length in tokens and the share at the limit are of the text alone: on ground truths they give what to compare with.
Longer texts repeat more words even when well written: read diversity beside length.
"""

from collections.abc import Sequence

from evaluation.metrics.statistics import Estimate, share
from negatives_gen.models.engine import Sample

DISTINCT = (1, 2, 3)
# Of "repetition", as in its source.
REPETITION_N = 4
# Of "loops", as in its source: longest phrase looked for, shortest one that counts when said twice, and how often
# a shorter one must be said.
LONGEST_PHRASE = 90
SHORTEST_PHRASE = 3
OFTEN = 50


def text_measurements(answers: Sequence[Sample]) -> dict[str, Estimate]:
    """Means over answers, with standard errors.

    Returns:
        answer_tokens: tokens, EOS included.
        answer_characters: characters of the text.
        hit_limit: share cut off at the length limit.
        empty: share without a word. What follows leaves these out, and texts of fewer than n words.
        distinct_1, distinct_2, distinct_3: different n-grams of words per n-gram of an answer (Li et al., NAACL 2016,
            there over all answers together; here per answer, which gives it a standard error and does not fall as
            answers are added).
        repetition: 1 - distinct_4 of an answer: seq-rep-4 of Welleck et al. (ICLR 2020), of words.
        loops: share that ends in a repeated phrase, see `ends_in_loop`; an empty answer does not.
        Those that no answer is long enough for are missing, and all of them if there are no answers.
    """
    words = [answer.text.lower().split() for answer in answers]
    lengths: dict[str, Sequence[float]] = {
        "answer_tokens": [len(answer.ids) for answer in answers],
        "answer_characters": [len(answer.text) for answer in answers],
    }
    shares: dict[str, Sequence[float]] = {
        "hit_limit": [answer.finish_reason == "length" for answer in answers],
        "empty": [not text for text in words],
        **{f"distinct_{n}": [distinct(text, n) for text in words if len(text) >= n] for n in DISTINCT},
        "repetition": [1 - distinct(text, REPETITION_N) for text in words if len(text) >= REPETITION_N],
        "loops": [ends_in_loop(text) for text in words],
    }
    found = {name: Estimate.of(values) for name, values in lengths.items() if values}
    return found | {name: share(values) for name, values in shares.items() if values}


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
