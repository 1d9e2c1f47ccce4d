"""data/schema.py: ids that derive from content."""

from data.schema import example_id


def test_an_id_depends_on_both_texts_and_on_where_one_ends():
    assert example_id("ab", "c") == example_id("ab", "c")
    assert len({example_id("ab", "c"), example_id("a", "bc"), example_id("abc", ""), example_id("c", "ab")}) == 4
    assert len(example_id("\ud800", "")) == 32


def test_the_ids_of_missing_or_other_values_differ_from_those_of_their_texts():
    values = [None, "None", 3, "3", 3.0, True, "True", [1], "[1]"]
    ids = {example_id(*pair) for value in values for pair in ((value, "x"), ("x", value), (value, value))}
    assert len(ids) == 3 * len(values)
    assert example_id(None, "x") == example_id(None, "x")
