"""`bleu`: sentence BLEU by sacrebleu (Post, 2018), of n-grams up to the longest there are (effective order)."""

from typing import Any

from negatives_gen.signals.base import Reference, TextSignal


class Bleu(TextSignal):
    """Sentence BLEU in [0, 1] rather than sacrebleu's per cent; 0 where a text has no token."""

    name = "bleu"
    summary = "sentence BLEU of sacrebleu"
    library = "sacrebleu"

    def __init__(self, options: Any, reference: Reference):
        from sacrebleu.metrics import BLEU

        self.metric = BLEU(effective_order=True)

    def similarity(self, text: str, truth: str) -> float:
        return min(1.0, self.metric.sentence_score(text, [truth]).score / 100)


SIGNAL = Bleu
