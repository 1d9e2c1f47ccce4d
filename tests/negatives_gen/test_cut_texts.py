"""That a model reads a part of long texts is said once."""

import logging

import pytest

from negatives_gen.models.cut_texts import CutTexts


def words(text: str) -> int:
    return len(text.split())


def test_the_longest_text_is_looked_at_until_one_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    cut = CutTexts("embedder 'small'", 3)
    cut.look([], words)
    cut.look(["a b c", "a"], words)
    assert not caplog.messages
    cut.look(["a", "a b c d"], words)
    cut.look(["a b c d e f"], words)
    assert caplog.messages == [
        "embedder 'small' reads 3 tokens of a text at most: of longer ones, such as one of 4, only the beginning counts"
    ]


def test_a_model_without_a_limit_is_not_asked() -> None:
    CutTexts("m", None).look(["a b c"], lambda text: 1 // 0)
