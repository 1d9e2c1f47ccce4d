"""`inspect`: what is shown of a group, in the terminal and in the page; the page in a real browser where there is one.

Where there is none, or no `playwright`, the tests of what the page holds still run, and those that click are skipped.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from data.command.cleaning import printable
from data.schema import Candidate, Group, Reject
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from negatives_gen.__main__ import main
from negatives_gen.verbs.group_page import page
from tests.support.pages import data_of, serious_findings
from tests.support.written import job_of

HOSTILE = "<script>window.ran = 1</script></script><!--<b>bold</b>[/] [red]red[/red] :smile: &amp; \u2028\x1b[2J"


def candidate(strategy: str, text: str, logp: float | None, *similarity: float | None, **more: Any) -> Candidate:
    similarities: Any = dict(zip(("embedding", "rouge"), similarity, strict=True))
    return Candidate(strategy, [5] * 4, text, reference_logp=logp, similarity=similarities, **more)


def make_groups() -> list[Group]:
    # Of the first it is not known, the second is in reach of the sampler, the third is not.
    one, two, three = "aa" + "1" * 30, "ab" + "2" * 30, "b" + "3" * 31
    return [
        Group(
            id=one, prompt="Which river?", response="The Isar.", prompt_ids=[1], response_ids=[1, 2, 3],
            reference_logp=-6.0,
            negatives=[
                candidate("an", "The Rhine.", -2.0, 0.25, 0.5, finish_reason="stop"),
                candidate("an", "A long river without", -9.0, 0.5, 0.25, finish_reason="length"),
                candidate("bn", "Otto.", -12.5, 0.25, 0.75, source_id=two),
            ],
        ),
        Group(
            id=two, prompt="Who?", response="Otto.", prompt_ids=[1], response_ids=[1, 2], split="test",
            reference_logp=-4.0, in_support=True,
            negatives=[
                candidate("an", HOSTILE, -3.0, 0.875, 0.125, finish_reason="stop"),
                candidate("an", "w" * 300, None, -0.5, 0.0, finish_reason="stop"),
                candidate("bn", "The Isar.", -8.0, 0.0, 0.25, source_id=one),
            ],
        ),
        Group(
            id=three, prompt="Why?", response="Because.", prompt_ids=[1], response_ids=[1], reference_logp=-1.0,
            in_support=False,
            negatives=[candidate("an", "No.", -1.0, 0.125, 0.0), candidate("an", "Yes.", -2.0, 0.0, 0.125)],
        ),
    ]  # fmt: skip


def written(path: Path, shards: Sequence[Sequence[Group]]) -> Path:
    writer = NegativeSetWriter(str(path), job_of(an=2, bn=1), ["embedding", "rouge"])
    writer.begin()
    rejects = [Reject("f" * 32, "too long", "130 tokens, the model takes 128", "p")]
    for index, groups in enumerate(shards):
        writer.write_shard(index, groups, [] if index else rejects, seconds={}, layout="packed")
    writer.finish(len(shards))
    return path


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """A set of three groups in two shards."""
    groups = make_groups()
    return written(tmp_path / "set", [groups[:1], groups[1:]])


def output(capsys: pytest.CaptureFixture[str], *argv: object) -> list[str]:
    assert main(["inspect", *map(str, argv)]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 100 for line in text.splitlines())
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def refusal(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main(["inspect", *map(str, argv)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_a_group_in_the_terminal(shown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, shown, "--limit", 1)
    assert lines[:3] == [
        f"group {make_groups()[0].id} (train)",
        "Which river?",
        "rank who continuation ranking signals reference, length",
    ]
    assert lines[4:] == [
        "0 truth The Isar. log p -6.00",
        "per token -2.00",
        "tokens 3",
        "1 an A long river without embedding 0.500 log p -9.00",
        "rouge 0.250 per token -2.25",
        "tokens 4",
        "ends by length",
        # A tie keeps the order of the set.
        "2 an The Rhine. embedding 0.250 log p -2.00",
        "rouge 0.500 per token -0.50",
        "tokens 4",
        "ends by stop",
        "3 bn Otto. embedding 0.250 log p -12.50",
        "from group ab2222222222 rouge 0.750 per token -3.12",
        "tokens 4",
        "1 of 3 groups, ranked by embedding; from reference 'ref'",
    ]


def test_a_truth_says_whether_it_was_in_reach_of_the_sampler(shown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row, expected in {"aa": [], "ab": ["in reach yes"], "b": ["in reach no"]}.items():
        assert [line for line in output(capsys, shown, "--row", row) if "in reach" in line] == expected


def test_another_signal_gives_other_ranks(shown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, shown, "--limit", 1, "--rank_by", "rouge")
    assert [line[:4] for line in lines if re.match(r"\d (an|bn|truth)", line)] == ["0 tr", "1 bn", "2 an", "3 an"]
    assert lines[-1] == "1 of 3 groups, ranked by rouge; from reference 'ref'"


def test_markup_and_control_characters_are_shown_as_they_are(shown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(output(capsys, shown, "--row", "ab"))
    for word in ("1</script></script><!--<b>bold</b>[/]", "[red]red[/red]", ":smile:", "&amp;"):
        assert word in text.split()
    assert r"\u2028\x1b[2J" in text
    assert "\x1b" not in text
    assert text.count("w") >= 300  # a word wider than its column is folded, not cut
    assert printable("a\tb\nc\r\x9b\u200dü") == "a\tb\nc\\r\\x9b\u200dü"


def test_inspect_shows_the_groups_of_a_split_up_to_the_limit(shown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [group.id for group in make_groups()]

    def found(*argv: object) -> list[str]:
        return [line.split()[1] for line in output(capsys, shown, *argv) if line.startswith("group ")]

    assert found() == ids
    assert found("--split", "train") == [ids[0], ids[2]]
    assert found("--split", "test") == [ids[1]]
    assert found("--split", "train", "--limit", 1) == [ids[0]]
    assert (
        output(capsys, shown, "--split", "test")[-1]
        == "1 group of split test, ranked by embedding; from reference 'ref'"
    )


def test_no_more_shards_are_read_than_the_limit_needs(shown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shown / "shard-00001.parquet").write_bytes(b"damaged")
    assert output(capsys, shown, "--limit", 1)[-1] == "1 of 3 groups, ranked by embedding; from reference 'ref'"
    assert "shard-00001.parquet" in refusal(capsys, shown, "--limit", 2)


def test_a_row_by_the_first_digits_of_its_id(shown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [group.id for group in make_groups()]
    for row, expected in {"aa": ids[0], "ab": ids[1], "b": ids[2], ids[1]: ids[1]}.items():
        assert output(capsys, shown, "--row", row)[0].split()[1] == expected


def test_inspect_refuses_wrong_options_sets_and_files_in_one_line(
    shown: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [group.id for group in make_groups()]
    where = f"negative set '{shown}'"
    assert refusal(capsys, shown, "--row", "a") == (
        f"error: --row 'a' fits 2 groups of {where} ({ids[0]}, {ids[1]}). Give more digits of the id.\n"
    )
    assert refusal(capsys, shown, "--row", "c") == (
        f"error: no group of {where} has an id that begins with 'c'. Without --row ids are shown.\n"
    )
    assert refusal(capsys, shown, "--row", "ff") == (
        f"error: row '{'f' * 32}' is no group of {where}: too long (130 tokens, the model takes 128).\n"
    )
    assert "holds embedding, rouge. Did you mean 'rouge'?" in refusal(capsys, shown, "--rank_by", "rogue")
    assert "unknown split 'tset'" in refusal(capsys, shown, "--split", "tset")
    assert "--limit must be at least 1, got 0" in refusal(capsys, shown, "--limit", 0)
    assert "needs the negative set: inspect DIR" in refusal(capsys)
    assert "is no negative set" in refusal(capsys, shown.parent / "nothing")
    assert "is a directory. Give a file" in refusal(capsys, shown, "--html", shown)
    assert "is a directory. Give a file" in refusal(capsys, shown, "--html", f"{shown}/")


def test_a_row_of_a_scored_set_is_shown_with_prompt_and_ranks(
    negative_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = next(NegativeSet(str(negative_set)).groups())
    lines = output(capsys, negative_set, "--row", group.id)
    assert lines[: 1 + group.prompt.count("\n") + 1] == [f"group {group.id} ({group.split})", *group.prompt.split("\n")]
    assert [line.split()[0] for line in lines if re.match(r"\d (an|truth) ", line)] == ["0", "1", "2", "3"]


# The page.


def page_of(path: Path, *argv: object) -> str:
    assert main(["inspect", str(path), "--html", str(path.parent / "page.html"), *map(str, argv)]) == 0
    return (path.parent / "page.html").read_text(encoding="utf-8")


def test_a_page_is_replaced_and_what_is_none_stays(shown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert page_of(shown) == page_of(shown)
    capsys.readouterr()
    (shown.parent / "notes.html").write_text("mine")
    (shown.parent / "link.html").symlink_to(shown / "manifest.json")
    before = (shown / "manifest.json").read_bytes()
    for name in ("notes.html", "link.html", "set/manifest.json", "set/rejects.parquet"):
        assert "is there already" in refusal(capsys, shown, "--html", shown.parent / name)
    assert (shown.parent / "notes.html").read_text() == "mine"
    assert (shown / "manifest.json").read_bytes() == before


def test_the_page_holds_the_groups_and_nothing_that_a_text_says(
    shown: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html = page_of(shown)
    assert capsys.readouterr().out == f"{shown.parent / 'page.html'}: 3 of 3 groups, from reference 'ref'\n"
    data = data_of(html)
    assert [group["id"] for group in data["groups"]] == [group.id for group in make_groups()]
    assert data["groups"][1]["negatives"][0]["text"] == HOSTILE
    assert data["groups"][0]["truth"] == {"text": "The Isar.", "logp": -6.0, "tokens": 3, "reach": None}
    assert [group["truth"]["reach"] for group in data["groups"]] == [None, True, False]
    assert data["groups"][0]["negatives"][2] == {
        "strategy": "bn", "text": "Otto.", "logp": -12.5, "tokens": 4, "end": None, "source": "ab" + "2" * 30,
        "similarity": [0.25, 0.75], "ranks": [3, 1],
    }  # fmt: skip
    assert len(re.findall("<script", html)) == len(re.findall("</script", html)) == 2  # its own two
    assert "<!--" not in html
    assert "<b>" not in html


def test_the_page_needs_no_network(shown: Path) -> None:
    html = page_of(shown)
    assert "default-src 'none'" in html
    assert not re.search(r"https?:|src=|href=|@import|url\(", html)


def test_the_page_says_how_many_of_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = [Group(f"{i:032x}", "p", "r", [1], [1], "test" if i % 3 else "train") for i in range(330)]
    path = written(tmp_path / "set", [groups[:300], groups[300:]])
    for argv, held, total in (((), 200, 330), (("--split", "test"), 200, 220), (("--limit", 7), 7, 330)):
        data = data_of(page_of(path, *argv))
        assert (len(data["groups"]), data["total"]) == (held, total)
        assert capsys.readouterr().out == f"{tmp_path / 'page.html'}: {held} of {total} groups, from reference 'ref'\n"


def test_numbers_of_the_page_are_float32_in_few_digits_and_valid_json() -> None:
    import numpy as np

    values = [float(np.float32(0.1)), float(np.nextafter(np.float32(0.1), np.float32(1))), math.nan, math.inf]
    negatives = [Candidate("an", [1], "", similarity={"rouge": value}) for value in values]
    html = page("set", [Group("a", "", "", [1], [1], negatives=negatives)], ["rouge"], "rouge", 1, "all")
    low, high, nan, inf = (c["similarity"][0] for c in data_of(html)["groups"][0]["negatives"])
    assert (low, high, nan, inf) == (0.100000001, 0.100000009, None, None)


# The page in a browser.


@pytest.fixture
def open_page(browser: Any, shown: Path) -> Iterator[Any]:
    """Opens the page of a set; at the end nothing was loaded but the page, and no script failed."""
    troubles: list[str] = []
    opened: list[Any] = []

    def opened_page(path: Path = shown, width: int = 1280, scheme: str = "light", argv: Sequence[object] = ()) -> Any:
        page_of(path, *argv)
        tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        opened.append(tab)
        address = (path.parent / "page.html").as_uri()
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("request", lambda request: troubles.append(request.url) if request.url != address else None)
        tab.goto(address)
        return tab

    yield opened_page
    for tab in opened:
        tab.close()
    assert troubles == []


def texts(tab: Any, selector: str = "li .text") -> list[str]:
    """Texts of the elements that fit, with the typographer's minus and dash as plain ones."""
    return [text.replace("\u2212", "-").replace("\u2013", "-") for text in tab.locator(selector).all_text_contents()]


def test_browser_shows_texts_and_runs_none(open_page: Any) -> None:
    tab = open_page()
    assert texts(tab, ".prompt") == ["Which river?", "Who?", "Why?"]
    assert texts(tab, ".truth .text") == ["The Isar.", "Otto.", "Because."]
    assert texts(tab) == [
        "A long river without", "The Rhine.", "Otto.", HOSTILE, "The Isar.", "w" * 300, "No.", "Yes.",
    ]  # fmt: skip
    assert [text.split(" token")[-1].lstrip("s") for text in texts(tab, ".truth .facts")] == [
        "", "in reach of the sampler", "out of the sampler's reach",
    ]  # fmt: skip
    assert tab.evaluate("window.ran") is None
    assert tab.locator("li b").count() == 0
    assert texts(tab, "li:first-child .facts > *")[:7] == [
        "rank 1", "an", "embedding 0.500", "rouge 0.250", "log p -9.00, -2.25 per token", "4 tokens", "ends by length",
    ]  # fmt: skip
    assert texts(tab, ".likelier") == [
        "log p -2.00, -0.50 per token, likelier than the truth",
        "log p -3.00, -0.75 per token, likelier than the truth",
    ]
    assert tab.locator("#shown").text_content() == "This page holds 3 of 3 groups."


def test_browser_filters(open_page: Any) -> None:
    tab = open_page()
    tab.fill("#text", "oTTo")
    assert texts(tab, ".prompt") == ["Which river?", "Who?"]
    assert texts(tab, "mark") == ["Otto", "Otto"]
    tab.fill("#text", "[/] [red]")  # a text, not a pattern
    assert texts(tab, ".prompt") == ["Who?"]
    tab.fill("#text", "zzz")
    assert texts(tab, ".empty") == ["No group fits. Change the search, split or strategies."]
    tab.fill("#text", "")
    tab.select_option("#split", "test")
    assert texts(tab, ".prompt") == ["Who?"]
    tab.select_option("#split", "all")
    tab.uncheck("input[value=an]")
    assert texts(tab) == ["Otto.", "The Isar."]  # a group without any is left out
    assert texts(tab, ".rank") == ["rank 3", "rank 2"]  # among all negatives of the group, as for the trainer
    assert texts(tab, "#where") == ["1-2 of 2"]


def test_browser_sorts(open_page: Any) -> None:
    tab = open_page()
    tab.select_option("#sort", "similarity-down")
    assert texts(tab, ".prompt") == ["Who?", "Which river?", "Why?"]
    tab.select_option("#sort", "similarity-up")
    assert texts(tab, ".prompt") == ["Who?", "Why?", "Which river?"]
    assert texts(tab)[:3] == ["w" * 300, "The Isar.", HOSTILE]
    tab.select_option("#sort", "logp-down")  # per token: -0.25, -0.5 and -0.75; without one comes last
    assert texts(tab) == [
        "No.", "Yes.", "The Rhine.", "A long river without", "Otto.", HOSTILE, "The Isar.", "w" * 300,
    ]  # fmt: skip
    tab.select_option("#sort", "rank")
    tab.select_option("#signal", "rouge")
    assert texts(tab)[:3] == ["Otto.", "The Rhine.", "A long river without"]
    assert texts(tab, ".rank")[:3] == ["rank 1", "rank 2", "rank 3"]


def test_browser_follows_a_borrowed_answer_to_its_group(open_page: Any) -> None:
    tab = open_page()
    tab.uncheck("input[value=an]")
    tab.click("text=ab2222222222")
    assert texts(tab, ".prompt") == ["Who?"]
    assert tab.is_checked("input[value=an]")  # or that group might be filtered away
    assert tab.evaluate("location.hash") == "#?text=" + "ab" + "2" * 30
    assert texts(open_page(argv=("--limit", 1)), "li .link") == []  # the group is not in this page


def test_browser_shows_how_a_changed_truth_differs(open_page: Any, tmp_path: Path) -> None:
    changed = {
        "mn": "The Inn, a river.",
        "tn": "The Isar",
        "rn": "The Isar, an Alpine river.",
        "bn": "The Inn, a lake.",
    }
    group = Group(
        "a" * 32, "Which?", "The Isar, a river.", [1], [1],
        negatives=[candidate(strategy, text, -1.0, 0.0, 0.0) for strategy, text in changed.items()],
    )  # fmt: skip
    tab = open_page(written(tmp_path / "changed", [[group]]))
    assert texts(tab) == [
        "The Isar Inn, a river.",
        "The Isar, a river.",
        "The Isar, a an Alpine river.",
        "The Inn, a lake.",
    ]
    assert texts(tab, "ins") == ["Inn", "an Alpine"]
    assert texts(tab, "del") == ["Isar", ", a river.", "a"]


def test_browser_keeps_what_is_shown_in_the_address(open_page: Any) -> None:
    tab = open_page()
    tab.select_option("#split", "train")
    tab.uncheck("input[value=an]")
    assert tab.evaluate("location.hash") == "#?split=train&without=an"
    tab.reload()
    assert texts(tab) == ["Otto."]
    tab.click(f"text={make_groups()[0].id}")
    assert texts(tab, ".prompt") == ["Which river?"]
    assert tab.is_checked("input[value=an]")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_browser_accessibility(open_page: Any, width: int, scheme: str) -> None:
    assert serious_findings(open_page(width=width, scheme=scheme)) == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (390, "dark")])
def test_browser_needs_no_sideways_scrolling(open_page: Any, width: int, scheme: str) -> None:
    """On a desktop the answers stand beside the prompt, on a phone below it; a word of 300 letters is broken."""
    tab = open_page(width=width, scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    left, answers = (tab.locator(selector).first.bounding_box() for selector in (".left", "ol"))
    assert (answers["x"] >= left["x"] + left["width"]) == (width == 1280)
    assert (answers["y"] >= left["y"] + left["height"]) == (width == 390)
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(246, 246, 244)", "dark": "rgb(20, 23, 26)"}[scheme]


def test_browser_pages_through_thousands_of_groups(open_page: Any, tmp_path: Path) -> None:
    groups = [
        Group(
            f"{i:032x}", f"Question {i}?", "Yes.", [1], [1], reference_logp=-1.0,
            negatives=[candidate("an", f"Answer {i} {j}.", -1.0, j / 16, 0.0) for j in range(4)],
        )
        for i in range(2000)
    ]  # fmt: skip
    tab = open_page(written(tmp_path / "large", [groups]), argv=("--limit", 2000))
    assert texts(tab, "#where") == ["1-20 of 2000"]
    assert tab.locator("article").count() == 20
    assert tab.is_disabled("#previous")
    tab.click("#next")
    assert texts(tab, ".prompt")[0] == "Question 20?"
    assert texts(tab, "#where") == ["21-40 of 2000"]
    milliseconds = tab.evaluate(
        "() => { const start = performance.now(); document.getElementById('text').value = '1999';"
        " document.getElementById('filters').dispatchEvent(new Event('input')); return performance.now() - start; }"
    )
    assert texts(tab, ".prompt") == ["Question 1999?"]
    assert texts(tab, "#where") == ["1-1 of 1"]
    assert milliseconds < 2000
