"""data/sources/facts.py: the embedded world and its judge. The world may be tuned; these properties must stay."""

import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest

from data.sources import facts
from data.sources.facts import VALUES, examples, is_correct, world
from tests.support.commands import ROOT

ROWS = examples()


def asked(prompt: str) -> tuple[str, tuple[str, str]]:
    """The town and the two attributes that a prompt asks for, found by the judge alone.

    An answer that states just these two is correct, and any other pair of true values is not.
    """
    town = next(town for town in world() if town in prompt)
    pairs = [pair for pair in combinations(VALUES, 2) if is_correct(prompt, state(town, *pair))]
    assert len(pairs) == 1
    return town, pairs[0]


def state(town: str, *attributes: str) -> str:
    return f" {town}: {' '.join(world()[town][a] for a in attributes)}."


def other_value(town: str, attribute: str) -> str:
    return next(v for v in VALUES[attribute] if v != world()[town][attribute])


SAMPLE = ROWS[:: len(ROWS) // 25]


def test_every_examples_own_answer_is_correct():
    assert [row for row in ROWS if not is_correct(row["prompt"], row["completion"])] == []


def test_no_question_occurs_twice():
    assert [prompt for prompt, n in Counter(row["prompt"] for row in ROWS).items() if n > 1] == []


def test_every_question_asks_for_two_attributes_of_one_town_and_every_fact_is_asked_for():
    questions = [asked(row["prompt"]) for row in ROWS]
    facts_asked = {(town, attribute) for town, pair in questions for attribute in pair}
    assert facts_asked == {(town, attribute) for town in world() for attribute in VALUES}


def test_the_world_is_the_same_in_another_process_with_another_hash_seed():
    code = "from data.sources import facts; import json; print(json.dumps([facts.world(), facts.examples()]))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert len(runs[0]) > 1000


def test_a_value_belongs_to_one_attribute_and_is_no_town_and_one_word():
    every = [value for values in VALUES.values() for value in values]
    assert len(every) == len(set(every))
    assert not set(every) & set(world())
    assert [word for word in [*every, *world()] if not word.isascii() or not word.isalpha()] == []


def test_the_wording_of_questions_and_answers_states_no_value_by_accident():
    values = {value for values in VALUES.values() for value in values}
    for row in ROWS:
        words = set(facts._words(row["prompt"]))
        assert words & values == set()
        assert len(words & set(world())) == 1
        assert len(set(facts._words(row["completion"])) & values) == 2


@pytest.mark.parametrize("row", SAMPLE, ids=range(len(SAMPLE)))
class TestJudge:
    def test_both_facts_in_any_order_are_correct(self, row: dict[str, str]):
        town, pair = asked(row["prompt"])
        assert is_correct(row["prompt"], state(town, *pair))
        assert is_correct(row["prompt"], state(town, *reversed(pair)))

    def test_a_third_true_fact_is_allowed_and_a_third_false_one_is_not(self, row: dict[str, str]):
        town, pair = asked(row["prompt"])
        third = next(a for a in VALUES if a not in pair)
        assert is_correct(row["prompt"], row["completion"] + state(town, third))
        assert not is_correct(row["prompt"], row["completion"] + " " + other_value(town, third))

    def test_a_wrong_value_is_wrong(self, row: dict[str, str]):
        town, pair = asked(row["prompt"])
        for attribute in pair:
            wrong = row["completion"].replace(world()[town][attribute], other_value(town, attribute))
            assert wrong != row["completion"]
            assert not is_correct(row["prompt"], wrong)

    def test_a_missing_fact_is_wrong(self, row: dict[str, str]):
        town, pair = asked(row["prompt"])
        for attribute in pair:
            assert not is_correct(row["prompt"], state(town, attribute))

    def test_a_second_contradicting_value_is_wrong(self, row: dict[str, str]):
        town, pair = asked(row["prompt"])
        for attribute in pair:
            assert not is_correct(row["prompt"], f"{row['completion']} Or {other_value(town, attribute)}.")

    def test_another_town_is_wrong(self, row: dict[str, str]):
        town, _ = asked(row["prompt"])
        other = next(t for t in world() if t != town)
        assert not is_correct(row["prompt"], row["completion"].replace(town, other))
        assert not is_correct(row["prompt"], f"{row['completion']} So does {other}.")

    def test_an_empty_answer_or_the_question_repeated_is_wrong(self, row: dict[str, str]):
        for answer in ("", " \n", row["prompt"]):
            assert not is_correct(row["prompt"], answer)


@pytest.mark.parametrize("prompt", ["", "Question: who founded Rome?\nAnswer:", "Question: on which island it lies."])
def test_a_prompt_that_names_no_town_of_the_world_is_refused(prompt: str):
    with pytest.raises(KeyError, match="no town of the invented world"):
        is_correct(prompt, "Calder")
