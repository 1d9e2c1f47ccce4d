"""data/shape.py: the first place where JSON of others has another shape than ours."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from data.models import read_header, read_object
from data.shape import Count, Each, IfThere, ListOf, Maybe, misfit, parse_json
from tests.support.written import refusal

SHAPE = {
    "name": str,
    "rows": Count(10),
    "parts": ListOf(str, least=1),
    "by": Each(float),
    "at": Maybe(int),
    "of": IfThere(dict),
}
GOOD: dict[str, Any] = {"name": "x", "rows": 3, "parts": ["a"], "by": {"k": 1}, "at": None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"other": 1}, ""),
        ({"name": None}, "name is null, not a text"),
        ({"name": "\ud800"}, 'name is "\\ud800", not a text'),
        ({"rows": True}, "rows is true, not a whole number from 0 on to 10"),
        ({"rows": 11}, "rows is 11, not a whole number from 0 on to 10"),
        ({"parts": []}, "parts is [], not a list of 1 or more"),
        ({"parts": ["a", 2]}, "parts[1] is 2, not a text"),
        ({"by": {"k": "1"}}, 'by.k is "1", not a number'),
        ({"of": None}, "of is null, not an object"),
    ],
)
def test_the_first_misfit_is_named(change: dict[str, Any], said: str) -> None:
    assert misfit({**GOOD, **change}, SHAPE) == said


def test_a_missing_key_is_named() -> None:
    assert misfit({key: value for key, value in GOOD.items() if key != "rows"}, SHAPE) == "rows is missing"
    assert misfit([], SHAPE) == "it is [], not an object"


@pytest.mark.parametrize("depth", [65, 5000])
def test_what_is_nested_too_deeply_is_a_value_error(depth: int) -> None:
    assert parse_json(b"[" * 64 + b"1" + b"]" * 64) == json.loads(b"[" * 64 + b"1" + b"]" * 64)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(b"[" * depth + b"1" + b"]" * depth)


def test_what_is_no_text_is_a_value_error_in_words() -> None:
    with pytest.raises(ValueError, match=r"^no text in UTF-8$"):
        parse_json(b'{"a": "\xff\xfe"}')


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_a_model_that_is_nested_too_deeply_is_one_line(tmp_path: Path, name: str) -> None:
    deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
    (tmp_path / name).write_bytes(deep if name == "config.json" else struct.pack("<Q", len(deep)) + deep)
    assert "\n" not in refusal(lambda: (read_object if name == "config.json" else read_header)(tmp_path / name))
