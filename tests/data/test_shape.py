"""data/shape.py: the first place where JSON of others has another shape than ours."""

import ast
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from data.models import read_header, read_object
from data.shape import Count, Each, IfThere, ListOf, Maybe, as_read, misfit, parse_json, parse_shaped
from tests.support.commands import ROOT
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
        ({"by": {"k": 10**400}}, f"by.k is {'1' + '0' * 59} ..., not a number"),
        ({"by": {"k": float("inf")}}, "by.k is Infinity, not a number"),
        ({"by": {"k": float("nan")}}, "by.k is NaN, not a number"),
    ],
)
def test_the_first_misfit_is_named(change: dict[str, Any], said: str) -> None:
    assert misfit({**GOOD, **change}, SHAPE) == said


def test_a_missing_key_is_named() -> None:
    assert misfit({key: value for key, value in GOOD.items() if key != "rows"}, SHAPE) == "rows is missing"
    assert misfit([], SHAPE) == "it is [], not an object"


@pytest.mark.parametrize("depth", [65, 5000])
def test_json_that_is_nested_too_deeply_is_a_value_error(depth: int) -> None:
    assert parse_json(b"[" * 64 + b"1" + b"]" * 64) == json.loads(b"[" * 64 + b"1" + b"]" * 64)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(b"[" * depth + b"1" + b"]" * depth)


def test_json_that_is_no_text_is_a_value_error_in_words() -> None:
    with pytest.raises(ValueError, match=r"^no text in UTF-8$"):
        parse_json(b'{"a": "\xff\xfe"}')


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_a_model_that_is_nested_too_deeply_is_one_line(tmp_path: Path, name: str) -> None:
    deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
    (tmp_path / name).write_bytes(deep if name == "config.json" else struct.pack("<Q", len(deep)) + deep)
    assert "\n" not in refusal(lambda: (read_object if name == "config.json" else read_header)(tmp_path / name))


def test_a_text_of_another_shape_is_a_value_error_that_says_where() -> None:
    assert parse_shaped(json.dumps(GOOD), SHAPE) == GOOD
    with pytest.raises(ValueError, match=r"^rows is -1, not a whole number from 0 on to 10$"):
        parse_shaped(json.dumps({**GOOD, "rows": -1}), SHAPE)


def test_a_value_as_it_reads_back() -> None:
    assert as_read({1: (2, None)}) == {"1": [2, None]}
    assert as_read({"path": Path("a/b")}, default=str) == {"path": "a/b"}


HEADER = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ([], "is no safetensors file"),
        ({"w": 5}, "in its header, w is 5, not an object"),
        ({"w": {**HEADER["w"], "data_offsets": [4]}}, "w.data_offsets is [4], not a list of 2 or more"),
        ({"w": {**HEADER["w"], "data_offsets": [0, 4, 8]}}, "w ends before it begins"),
        ({"w": {**HEADER["w"], "data_offsets": [4, 0]}}, "w ends before it begins"),
        ({"w": {**HEADER["w"], "data_offsets": ["0", 4]}}, 'w.data_offsets[0] is "0", not a whole number'),
        ({"w": {"dtype": "F32"}}, "w.shape is missing"),
        ({"w": {**HEADER["w"], "dtype": None}}, "w.dtype is null, not a text"),
    ],
)
def test_a_header_of_another_shape_is_one_line(header: Any, said: str, tmp_path: Path) -> None:
    def write(content: Any) -> Path:
        text = json.dumps(content).encode()
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"1234")
        return tmp_path / "model.safetensors"

    assert read_header(write({**HEADER, "__metadata__": {"format": "pt"}}))[0] == HEADER
    line = refusal(lambda: read_header(write(header)))
    assert said in line
    assert "\n" not in line


# Their JSON is of this process's making.
OWN_JSON = {"data/shape.py", "data/models.py"}


def test_json_of_others_is_read_with_a_bound_of_its_depth() -> None:
    found = set()
    for room in ("data", "negatives_gen", "trainer", "evaluation"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.loads", "json.load"):
                    found.add(str(path.relative_to(ROOT)))
    assert found == OWN_JSON
