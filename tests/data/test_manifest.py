"""data/manifest.py: what tells two jobs apart, and where a set was made."""

import tomllib

import pyarrow as pa

from data.manifest import MISSING, environment, first_difference
from tests.support.commands import ROOT


def test_the_environment_names_package_versions_and_the_commit_of_this_checkout():
    found = environment()
    assert found["packages"]["pyarrow"] == pa.__version__
    assert len(found["git_commit"]) == 40
    assert found["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_first_difference_walks_nested_settings():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": [1]}}, {"a": {"b": [2]}}) == ("a.b", [1], [2])
    assert first_difference({}, {"new": 3}) == ("new", MISSING, 3)
    assert first_difference({"a": {"b": 1, "name": 2}}, {"a": {"b": 1}}, ignore=("a.name",)) is None


def test_first_difference_tells_null_from_missing_and_ignores_whole_paths_only():
    assert first_difference({"a": {"b": None}}, {"a": {}}) == ("a.b", None, MISSING)
    assert f"{MISSING!r}" == "(missing)"
    assert first_difference({"x": {"name": 1}}, {"x": {"name": 2}}, ignore=("name", "a.name")) == ("x.name", 1, 2)
