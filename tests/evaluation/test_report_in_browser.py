"""report.html in a real browser, where there is one: how it looks and works."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.metrics.statistics import Estimate, Measurement
from evaluation.report import Results, SampleRow
from tests.support.pages import serious_findings
from tests.support.report_pages import (
    CORRECT,
    HOSTILE,
    WRONG,
    answer,
    hostile_results,
    make_samples,
    page_of,
    results_of,
)
from tests.support.reports import COLUMNS, make_job, make_results, make_sweep, measured, rate


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens the page of results; at the end nothing was loaded but the page, and no script failed or was refused."""
    troubles: list[str] = []
    opened: list[Any] = []

    def opened_page(results: Results, view: str = "#samples", width: int = 1280, scheme: str = "light") -> Any:
        page_of(tmp_path, results)
        tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        opened.append(tab)
        address = (tmp_path / "report.html").as_uri()
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("request", lambda request: troubles.append(request.url) if not expected(request.url, address) else None)
        tab.goto(address + view)
        return tab

    def expected(url: str, address: str) -> bool:
        return url.partition("#")[0] == address or url.startswith("data:image/svg+xml;base64,")

    yield opened_page
    for tab in opened:
        tab.close()
    assert troubles == []


def open_details(tab: Any) -> None:
    tab.locator("details").evaluate_all("all => all.forEach(details => { details.open = true; })")


def texts(tab: Any, selector: str) -> list[str]:
    """Texts of the visible elements that fit, with the typographer's minus as a plain one."""
    return [text.replace("\u2212", "-") for text in tab.locator(f"{selector}:visible").all_text_contents()]


def test_browser_shows_numbers(open_page: Any) -> None:
    tab = open_page(results_of(make_samples(), sweep=make_sweep()), view="")
    assert texts(tab, "#overview h2")[:3] == [
        "Verdict", "Win rate against the ground truth, greedy", "Under the second model"
    ]  # fmt: skip
    first = tab.locator("table").first
    assert first.locator("tbody th").all_text_contents() == ["mle", "anr"]
    assert first.locator("tbody tr").first.locator("td").all_text_contents()[:3] == [
        "50.5% ± 1.6",
        "47.4 to 53.6%",
        "990",
    ]
    assert "-0.500 ± 0.013" in texts(tab, "td")
    assert texts(tab, "article") == []
    images = tab.locator("figure img")
    assert images.count() == 5  # win rate minus mle; reverse KL, NLL; win rate and reverse KL over alpha
    assert all(images.nth(i).evaluate("image => image.complete && image.naturalWidth > 300") for i in range(5))
    tab.set_viewport_size({"width": 390, "height": 844})
    # As large as it is drawn, and scrolled in its frame, not with the page.
    assert images.first.evaluate("image => image.getBoundingClientRect().width >= image.naturalWidth - 1")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390


def table_results() -> Results:
    found = [
        measured("b_1", "nll", 2.5), measured("a|b", "nll", -10.0), measured("c", "nll", 2.75),
        measured("b_1", "hit_limit", 0.5), measured("c", "hit_limit", 0.25),
    ]  # fmt: skip
    section = COLUMNS["nll"].section
    columns = {**COLUMNS, "hit_limit": replace(COLUMNS["hit_limit"], section=section)}
    return replace(make_results(found), columns=columns)


def test_browser_sorts_tables(open_page: Any) -> None:
    tab = open_page(table_results(), view="")
    table = tab.locator("table.numbers")
    assert table.locator("thead th").all_text_contents() == ["model", "NLL, greedy", "hit limit, greedy"]

    def models() -> list[str]:
        return texts(tab, "table.numbers tbody th")

    heading = table.get_by_role("button", name="NLL, greedy")
    for way, shown in (
        ("descending", ["c", "b_1", "a|b"]), ("ascending", ["a|b", "b_1", "c"]), (None, ["b_1", "a|b", "c"])
    ):  # fmt: skip
        heading.click()
        assert models() == shown
        assert table.locator("thead th").nth(1).get_attribute("aria-sort") == way
    for _ in range(2):
        table.get_by_role("button", name="hit limit, greedy").press("Enter")  # by keyboard too
        assert models()[-1] == "a|b"  # without a value: last both ways
    table.get_by_role("button", name="model").click()
    assert models() == ["a|b", "b_1", "c"]


def test_browser_copies_tables_as_they_are_shown(open_page: Any) -> None:
    tab = open_page(table_results(), view="")
    tab.get_by_role("button", name="NLL, greedy", exact=True).click()
    copied = []
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for name in ("Markdown", "LaTeX", "CSV"):
        tab.get_by_role("button", name=f"Copy Under the second model as {name}").click()
        tab.wait_for_selector(f"text=Copied as {name}.")
        copied.append(tab.evaluate("navigator.clipboard.readText()").replace("\r", "").splitlines())
    assert copied == [
        [
            "| model | NLL, greedy | hit limit, greedy |", "| --- | --: | --: |",
            "| c | 2.750 ± 0.013 | 25.0% ± 1.2 |", "| b_1 | 2.500 ± 0.013 | 50.0% ± 1.2 |",
            "| a\\|b | **\u221210.000 ± 0.013** |  |",
        ],
        [
            r"\begin{tabular}{lrr}", r"\toprule", r"model & NLL, greedy & hit limit, greedy \\", r"\midrule",
            r"c & 2.750 $\pm$ 0.013 & 25.0\% $\pm$ 1.2 \\", r"b\_1 & 2.500 $\pm$ 0.013 & 50.0\% $\pm$ 1.2 \\",
            r"a$|$b & \textbf{$-$10.000 $\pm$ 0.013} &  \\", r"\bottomrule", r"\end{tabular}",
        ],
        [
            'model,"NLL, greedy","NLL, greedy ±","hit limit, greedy","hit limit, greedy ±"',
            "c,2.750,0.013,25.0%,1.2", "b_1,2.500,0.013,50.0%,1.2", "a|b,-10.000,0.013,,",
        ],
    ]  # fmt: skip


def test_browser_shows_first_where_models_differ_and_which_words(open_page: Any) -> None:
    alike = [answer("mle", "Alike."), answer("cpo", "Alike.")]
    words = [answer("mle", "On the river Isar."), answer("cpo", "On the long river Inn.")]
    marks = [answer("mle", "So.", None, "", CORRECT), answer("cpo", "So.", None, "", WRONG)]
    named = zip(("alike", "words", "marks"), (alike, words, marks), strict=True)
    tab = open_page(results_of([SampleRow(f"id-{n}", n, "On a river.", rows) for n, rows in named]))
    assert texts(tab, ".given > :first-child .text") == ["marks", "words", "alike"]
    assert texts(tab, "ins") == ["long", "Inn"]  # of cpo's answer, beside mle's
    assert texts(tab, ".answers .text")[3] == "On the long river Inn."
    tab.select_option("#beside", label="the ground truth")
    assert texts(tab, "article:nth-child(2) ins") == ["the", "Isar", "the long", "Inn"]
    tab.select_option("#beside", label="nothing")
    assert texts(tab, "ins") == []
    tab.select_option("#order", label="as they come")
    assert texts(tab, ".given > :first-child .text") == ["alike", "words", "marks"]


def test_browser_keeps_what_is_shown_in_the_address(open_page: Any) -> None:
    results = results_of(make_samples()[:3])
    tab = open_page(results)
    assert tab.evaluate("location.hash") == "#samples"
    tab.select_option("#outcome", label="cpo wrong (2)")
    tab.fill("#text", "? &#")
    tab.uncheck("#models-shown input >> nth=0")
    tab.fill("#text", "w")
    tab.click("text=Overview")
    tab.click("header nav a >> nth=1")  # back to the same
    address = tab.evaluate("location.hash")
    assert texts(tab, "#where") == ["2 of 3 prompts"]
    other = open_page(results, view=address)
    assert texts(other, ".answers h3") == texts(tab, ".answers h3") == ["cpo"] * 2
    assert other.input_value("#text") == "w"
    other.click("text=b333")  # a link to that sample
    assert texts(other, ".given > :first-child .text") == ["Why?"]
    assert texts(other, ".answers h3") == ["mle", "cpo"]
    assert other.evaluate("location.hash") == "#samples?text=b333"
    other.go_back()
    assert other.input_value("#text") == "w"
    unknown = open_page(results, view="#samples?order=none&outcome=none&without=none&page=99&text=")
    assert texts(unknown, "#where") == ["3 of 3 prompts"]


@pytest.mark.parametrize("view", ["", "#samples"])
def test_browser_accessibility(open_page: Any, view: str) -> None:
    tab = open_page(results_of(make_samples(), sweep=make_sweep()), view)
    open_details(tab)
    for width in (1280, 390):
        tab.set_viewport_size({"width": width, "height": 844})
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            assert (width, scheme, serious_findings(tab)) == (width, scheme, [])


def test_browser_tells_by_keyboard_and_touch_what_columns_are(open_page: Any) -> None:
    tab = open_page(results_of(make_samples()), view="")
    button = tab.get_by_role("button", name="win rate minus mle", exact=True)
    assert tab.locator("#" + button.get_attribute("aria-describedby")).text_content() == (
        "win rate minus the baseline's, by prompt"
    )
    tables = tab.locator("table.numbers").count()
    assert texts(tab, ".meanings summary") == ["What the columns are"] * tables
    assert texts(tab, ".meanings dd") == []
    tab.locator(".meanings summary").first.press("Enter")
    assert "win rate minus the baseline's, by prompt" in texts(tab, ".meanings dd")


def test_browser_shows_texts_and_runs_none(open_page: Any) -> None:
    tab = open_page(hostile_results())
    assert texts(tab, ".given > :first-child .text") == ["Which river?", "Who?", "Why?", HOSTILE]
    assert texts(tab, ".truth .text") == ["The Isar.", "Otto.", "Because.", HOSTILE]
    assert texts(tab, ".answers .text")[-2:] == [HOSTILE, HOSTILE]
    assert texts(tab, ".id")[-1] == HOSTILE
    tab.click("text=Overview")
    assert HOSTILE in texts(tab, "tbody th")
    assert HOSTILE in texts(tab, ".notes li")
    assert tab.evaluate("window.ran") is None
    assert tab.locator("b:not(.badge b)").count() == 0
    assert tab.locator("img[src=x]").count() == 0


def test_browser_would_not_run_an_injected_script(open_page: Any, browser: Any, tmp_path: Path) -> None:
    """The second line of defence: even markup that got in is inert."""
    html = page_of(tmp_path, results_of(make_samples()))
    path = tmp_path / "broken.html"
    path.write_text(html.replace("<main>", "<main><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"))
    tab = browser.new_page()
    tab.goto(path.as_uri() + "#samples")
    assert tab.evaluate("window.ran") is None
    assert tab.locator("article").count() == 4
    tab.close()


def test_browser_shows_verdicts(open_page: Any) -> None:
    tab = open_page(results_of(make_samples()[:3]))
    assert texts(tab, ".answers h3") == ["mle", "cpo"] * 3
    assert texts(tab, ".badges") == [
        "losesB AwrongWhat code says.", "winsA Bcorrect", "winsA Bcorrect", "flipsA AwrongWhat code says.",
        "ties: the samewrongWhat code says.", "not judged: unparsedA ?wrongWhat code says.cut at the limit",
    ]  # fmt: skip
    assert texts(tab, ".badge.bad span") == []
    tab.locator(".badge.bad summary").first.press("Enter")
    assert texts(tab, ".badge.bad span") == ["What code says."]
    assert texts(tab, ".facts") == ["3 tokens"] * 5 + ["1 token"]
    assert texts(tab, "#judged")[0].startswith("Outcomes are against the ground truth. Behind an outcome: the judge")


def test_browser_filters_samples(open_page: Any) -> None:
    tab = open_page(results_of(make_samples()[:3]))

    def prompts() -> list[str]:
        return texts(tab, ".given > :first-child .text")

    assert texts(tab, "#where") == ["3 of 3 prompts"]
    options = tab.locator("#outcome option").all_text_contents()
    assert options == [
        "all prompts", "mle wins (1)", "mle loses (1)", "mle ties (1)", "mle correct (1)", "mle wrong (2)",
        "cpo wins (1)", "cpo flips (1)", "cpo not judged (1)", "cpo correct (1)", "cpo wrong (2)",
        "cpo cut at the limit (1)",
    ]  # fmt: skip
    for chosen, shown in (("cpo wins (1)", "Which river?"), ("cpo flips (1)", "Who?"), ("cpo not judged (1)", "Why?")):
        tab.select_option("#outcome", label=chosen)
        assert prompts() == [shown]
    tab.select_option("#outcome", label="cpo wrong (2)")
    assert prompts() == ["Who?", "Why?"]
    tab.select_option("#second", label="mle wins (1)")  # cpo wrong where mle wins
    assert prompts() == ["Who?"]
    assert texts(tab, "#where") == ["1 of 3 prompts"]
    tab.fill("#text", "zzz")
    assert texts(tab, ".empty") == ["No prompt fits. Change the search or what is shown."]
    tab.select_option("#outcome", "")
    tab.select_option("#second", "")
    tab.fill("#text", "oTTo")
    assert prompts() == ["Who?"]
    assert texts(tab, "mark") == ["Otto", "Otto"]
    tab.fill("#text", "b333")
    assert prompts() == ["Why?"]
    tab.fill("#text", "rhine")
    assert prompts() == ["Which river?"]
    tab.uncheck("#models-shown input >> nth=0")  # the word is only in the answer that is hidden now
    assert prompts() == []
    tab.fill("#text", "")
    assert texts(tab, ".answers h3") == ["cpo"] * 3
    assert tab.locator("#decodings").is_hidden()


def test_browser_chooses_a_decoding(open_page: Any) -> None:
    rows = [
        answer("cpo", "Greedy.", 1.0, "AB"), answer("cpo", "Beam.", 0.0, "BA", decoding="beam2"),
        answer("cpo", "Beam.", 1.0, "AB", decoding="beam2", against="mle"),
    ]  # fmt: skip
    tab = open_page(results_of([SampleRow("a", "p", "t", rows)]))
    assert texts(tab, ".answers .text") == ["Greedy."]
    assert tab.locator("#outcome option").all_text_contents() == [
        "all prompts",
        "cpo wins against the ground truth (1)",
    ]
    tab.select_option("#outcome", index=1)
    tab.select_option("#decoding", "beam2")
    assert texts(tab, ".answers .text") == ["Beam."]  # the outcome does not occur there, so it is no longer chosen
    assert texts(tab, ".badge") == ["loses against the ground truthB A", "wins against mleA B"]
    tab.select_option("#decoding", "")
    assert texts(tab, ".answers h3") == ["cpo greedy", "cpo beam2"]


@pytest.mark.parametrize("view", ["", "#samples"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (390, "dark")])
def test_browser_needs_no_sideways_scrolling(open_page: Any, view: str, width: int, scheme: str) -> None:
    """Wide tables scroll in their own boxes; a word of 300 letters is broken, in names too."""
    long = "m" * 120
    results = results_of(make_samples(), sweep=make_sweep(), second_model={"name": long})
    found = [*results.measurements, *(rate(0.5, long, against=long) for _ in range(1)), measured("mle", long, 1.0)]
    tab = open_page(replace(results, measurements=found, notes=[long]), view, width, scheme)
    open_details(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(246, 246, 244)", "dark": "rgb(20, 23, 26)"}[scheme]
    if view:
        first, second = (tab.locator(".answer").nth(i).bounding_box() for i in (0, 1))
        assert (first["y"] == second["y"]) == (width == 1280)  # side by side, or below each other
    elif width == 390:
        box = tab.locator(".scroll").first
        assert box.evaluate("box => box.scrollWidth > box.clientWidth")
        name = box.locator("tbody th").first
        before = name.bounding_box()["x"]
        box.evaluate("box => { box.scrollLeft = 200; }")
        assert name.bounding_box()["x"] == before  # stays while numbers scroll
        image = tab.locator("picture img").first
        assert image.evaluate("image => image.currentSrc.length") > 1000


@pytest.mark.parametrize("view", ["", "#samples"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_contrast_of_texts(open_page: Any, view: str, scheme: str) -> None:
    """At least 4.5 to 1 (WCAG AA) between every text and what is behind it."""
    tab = open_page(results_of(make_samples()), view, scheme=scheme)
    open_details(tab)
    ratios = tab.evaluate(CONTRASTS)
    assert len(ratios) > 50
    assert [found for found in ratios if found[0] < 4.5] == []


CONTRASTS = """() => [...document.body.querySelectorAll('*')].filter(element => element.checkVisibility()
    && !element.matches(':disabled, option, script') && [...element.childNodes].some(node => node.data?.trim()))
.map(element => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = colour => {
    const [r, g, b] = numbers(colour).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  let behind = element;
  while (numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(luminance);
  return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), element.outerHTML.slice(0, 80)];
})"""


def test_browser_page_works_by_keyboard(open_page: Any) -> None:
    tab = open_page(results_of(make_samples()), view="")
    reached: list[str] = []
    for _ in range(30):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.textContent.trim()"))
        if reached[-1].startswith("Samples"):
            break
    tab.keyboard.press("Enter")
    tab.wait_for_selector("article")
    assert tab.evaluate("document.querySelector('[aria-current]').hash") == "#samples"
    assert tab.locator("#overview").is_hidden()
    tab.keyboard.press("Tab")
    tab.keyboard.type("otto")
    assert texts(tab, "#where") == ["1 of 4 prompts"]
    tab.go_back()
    tab.wait_for_selector("#overview", state="visible")
    # A table that scrolls can be reached, and so scrolled.
    assert tab.locator(".scroll[tabindex='0']").count() == tab.locator(".scroll").count() > 3


def test_browser_pages_through_a_thousand_prompts_of_ten_answers(open_page: Any) -> None:
    text = "A sentence of an answer that is neither short nor long, as models write them. " * 8
    rows = [
        SampleRow(f"{i:032x}", f"Question {i}? {text}", text, [
            answer(f"model-{j}", f"Answer {i} {j}. {text}", float(j % 2), "AB" if j % 2 else "BA") for j in range(10)
        ])
        for i in range(1000)
    ]  # fmt: skip
    estimates = [Measurement(f"model-{j}", "greedy", "nll", Estimate(2.0, 0.1, 1000)) for j in range(10)]
    tab = open_page(Results(make_job(), {}, estimates, rows, columns=COLUMNS))
    assert texts(tab, "#page") == ["page 1 of 50"]
    assert tab.locator("article").count() == 20
    assert tab.locator(".answer").count() == 200
    assert tab.is_disabled("#previous")
    tab.click("#next")
    assert texts(tab, ".given > :first-child .text")[0].startswith("Question 20?")
    assert texts(tab, "#page") == ["page 2 of 50"]
    for script, shown in (
        ("text.value = 'answer 999 7.'", ["1 of 1,000 prompts"]),
        ("text.value = 'sentence'; outcome.selectedIndex = 2", ["1,000 of 1,000 prompts"]),
    ):
        milliseconds = tab.evaluate(
            "() => { const [text, outcome, filters] ="
            " ['text', 'outcome', 'filters'].map(id => document.getElementById(id));"
            f" const start = performance.now(); {script}; filters.dispatchEvent(new Event('input'));"
            " document.body.offsetHeight; return performance.now() - start; }"
        )
        assert texts(tab, "#where") == shown
        assert milliseconds < 2000
