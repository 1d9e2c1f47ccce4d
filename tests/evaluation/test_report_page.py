"""report.html: what the file holds."""

import base64
import hashlib
import re
from pathlib import Path

import pytest

from evaluation.report import SampleRow
from tests.support.pages import data_of
from tests.support.report_pages import HOSTILE, answer, hostile_results, make_samples, page_of, results_of
from tests.support.reports import make_results, make_sweep


def test_the_page_holds_the_samples_and_nothing_that_a_text_says(tmp_path: Path) -> None:
    html = page_of(tmp_path, hostile_results())
    data = data_of(html)
    assert [row["id"] for row in data] == ["aa11", "ab22", "b333", HOSTILE]
    assert data[3]["prompt"] == data[3]["truth"] == data[3]["answers"][0]["text"] == HOSTILE
    assert len(re.findall("<script", html)) == len(re.findall("</script", html)) == 2  # its own two
    assert not re.search("<!--|<b>|<img src=x", html)
    assert html.count("{{ 7*7 }}") > 4  # no template of ours


def test_the_pages_data_say_how_each_comparison_came_out(tmp_path: Path) -> None:
    data = data_of(page_of(tmp_path, results_of(make_samples())))
    kinds = [[a["outcomes"][0]["kind"] for a in row["answers"]] for row in data]
    assert kinds == [["loss", "win"], ["win", "flip"], ["tie", "none"], ["none", "loss"]]
    assert data[2]["answers"][1]["outcomes"] == [
        {"against": "the ground truth", "kind": "none", "verdicts": "A?", "reason": "unparsed"}
    ]
    assert [a["cut"] for a in data[2]["answers"]] == [False, True]


def test_an_answer_judged_against_several_opponents_is_one_answer(tmp_path: Path) -> None:
    rows = [
        answer("cpo", "Yes.", 1.0, "AB"),
        answer("cpo", "Yes.", 0.0, "BA", against="mle"),
        answer("mle", "No.", against="", outcome=None),
    ]
    (row,) = data_of(page_of(tmp_path, results_of([SampleRow("a", "p", "t", rows)])))
    assert [(a["model"], [(o["against"], o["kind"]) for o in a["outcomes"]]) for a in row["answers"]] == [
        ("cpo", [("the ground truth", "win"), ("mle", "loss")]),
        ("mle", []),
    ]


@pytest.mark.seconds
def test_the_page_needs_no_network_and_lets_no_other_script_run(tmp_path: Path) -> None:
    html = page_of(tmp_path, results_of(make_samples(), sweep=make_sweep()))
    addresses = re.findall(r"""(?:src|srcset|href)=["']([^"']{0,40})""", html)
    assert {address[:26] for address in addresses} == {"#overview", "#samples", "data:image/svg+xml;base64,"}
    # The one address is the judge's, as text.
    assert set(re.findall(r"@import|url\(|https?:[^<&\"]*", html)) == {"http://a/v1"}
    policy = html.partition('http-equiv="Content-Security-Policy" content="')[2].partition('"')[0]
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'; style-src 'sha256-" in policy
    assert f"script-src 'sha256-{allowed}'; img-src data:" in policy
    assert "unsafe" not in policy


def test_a_page_without_samples_has_no_second_view(tmp_path: Path) -> None:
    html = page_of(tmp_path, make_results())
    assert data_of(html) == []
    assert "<nav" not in html


def test_the_page_begins_with_the_verdict_and_says_what_columns_are(tmp_path: Path) -> None:
    html = page_of(tmp_path, make_results())
    assert "<li>anr: 64.3% win rate, +13.8 ± 1.9 over mle.</li>" in html.replace("\u00a0", " ")
    assert html.index('id="verdict"') < html.index("<table")
    meaning = "win rate minus the baseline&#39;s, by prompt"
    where = re.escape(f'<th scope="col" title="{meaning}" aria-describedby="') + r"(meaning-\d+-\d+)"
    (place,) = re.findall(f'{where}">win rate minus mle</th>', html)
    assert f'<dt>win rate minus mle</dt><dd id="{place}">{meaning}</dd>' in html
    assert len(set(re.findall(r'<dd id="(\S+)">', html))) == len(re.findall(r'<dd id="', html)) > 5
    assert '<td class="best">64.3%' in html
