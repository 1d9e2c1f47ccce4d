"""data/sources/enquiries.py: the embedded example whose distribution is known."""

from collections import Counter

from data.sources import enquiries, facts
from data.sources.enquiries import EVASIVE, EVASIVE_SHARE, examples, is_evasive

ROWS = examples()


def test_each_question_is_there_once_and_always_with_the_same_reply() -> None:
    assert max(Counter(row["prompt"] for row in ROWS).values()) == 1
    assert examples() == ROWS
    assert len(ROWS) == 1798


def test_a_reply_is_right_or_evasive_in_the_shares_that_are_said() -> None:
    evasive = [row for row in ROWS if is_evasive(row["completion"])]
    right = [row for row in ROWS if facts.is_correct(row["prompt"], row["completion"])]
    assert len(evasive) + len(right) == len(ROWS)
    assert len(evasive) == round(EVASIVE_SHARE * len(ROWS)) == 719
    ways = Counter(row["completion"] for row in evasive)
    assert ways.keys() == set(EVASIVE)
    assert set(ways.values()) == {59, 60}


def test_an_evasive_reply_says_nothing_of_its_question() -> None:
    words = set(" ".join(enquiries.EVASIVE).split())
    assert not words & (facts.world().keys() | {value for values in facts.VALUES.values() for value in values})


def test_more_or_less_than_an_evasive_reply_is_none() -> None:
    assert is_evasive("I do not know that.")
    assert not is_evasive(" I do not know that. Belada lies on Gorm.")
    assert not is_evasive(" I do not know")
