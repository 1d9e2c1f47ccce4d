"""data/page: what HTML pages share becomes one file with a page's own; no text of data or values becomes code."""

import base64
import hashlib
import json
import re
import sys
from pathlib import Path

import pytest

from data.page.rendering import render

HOSTILE = "</script><script>window.ran = 1</script><!--<b>&amp;{{ 7*7 }}'\""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with the three files of a page."""
    folder = tmp_path / "pages_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "small.css").write_text(".own { color: var(--ink); }\n")
    (folder / "small.js").write_text("function draw() {}\n")
    (folder / "small.html").write_text(
        '{% extends "page.html" %}{% block title %}T {{ name }}{% endblock %}'
        "{% block body %}<p>{{ name }}</p>{% endblock %}"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, folder.name, raising=False)
    return folder.name


def test_a_page_is_the_shared_files_and_its_own(package: str) -> None:
    html = render(package, "small", [1], name="x")
    style = html.partition("<style>")[2].partition("</style>")[0]
    assert style.index(":root { --paper:") < style.index(".own { color: var(--ink); }")
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    assert script.index("function marked(") < script.index("function draw() {}")
    assert html.startswith("<!doctype html>\n<html lang=")
    assert "<title>T x</title>" in html
    assert "<p>x</p>" in html


def test_texts_are_data_and_never_markup(package: str) -> None:
    html = render(package, "small", {"text": HOSTILE}, name=HOSTILE)
    block = html.partition('<script type="application/json" id="data">')[2].partition("</script")[0]
    assert json.loads(block) == {"text": HOSTILE}
    assert len(re.findall("<script", html)) == len(re.findall("</script", html)) == 2
    assert not re.search("<!--|<b>", html)
    assert html.count("{{ 7*7 }}") == 3  # no template of ours


def test_the_policy_lets_only_the_pages_own_style_and_script_be_used(package: str) -> None:
    html = render(package, "small", [], name="x")
    policy = html.partition('http-equiv="Content-Security-Policy" content="')[2].partition('"')[0]

    def hashed(tag: str) -> str:
        content = html.rpartition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()

    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashed('style')}'; script-src 'sha256-{hashed('script')}'; "
        "img-src data:"
    )


def test_a_page_without_data_has_no_script_and_numbers_are_valid_json(package: str) -> None:
    assert "<script" not in render(package, "small", None, name="x")
    with pytest.raises(ValueError, match="JSON compliant"):
        render(package, "small", [float("nan")], name="x")
