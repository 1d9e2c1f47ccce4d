"""`rouge`: ROUGE-L F1 by Google's rouge-score (Lin, 2004): the longest common subsequence of words."""

import re
from typing import Any

from negatives_gen.signals.base import Reference, TextSignal


class UnicodeWords:
    """Words of any script, lower-cased; rouge-score's own tokenizer keeps a-z and 0-9 alone."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


class Rouge(TextSignal):
    """ROUGE-L F1 of two texts; 0 where one of them has no word, such as one of emoji alone."""

    name = "rouge"
    summary = "ROUGE-L F1"
    library = "rouge-score"

    def __init__(self, options: Any, reference: Reference):
        from rouge_score.rouge_scorer import RougeScorer

        self.scorer = RougeScorer(["rougeL"], tokenizer=UnicodeWords())

    def similarity(self, text: str, truth: str) -> float:
        return float(self.scorer.score(truth, text)["rougeL"].fmeasure)


SIGNAL = Rouge
