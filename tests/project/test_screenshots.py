"""docs/screenshots: what `make screenshots` makes is there, whole and small, and of the numbers that the docs give."""

from pathlib import Path

from PIL import Image

from data.shape import parse_json
from tests.support.screenshots import NUMBERS, VIEWS, WINDOWS, shoot
from tests.support.written import refusal

DOCS = Path(__file__).parents[2] / "docs"
IMAGES = DOCS / "screenshots"


def test_each_view_is_there_and_shown_and_all_are_small() -> None:
    expected = {name: width for view in VIEWS for name, (width, _) in view.images.items()}
    assert {image.name for image in IMAGES.iterdir()} == {*expected, NUMBERS}
    page = (DOCS / "screenshots.md").read_text(encoding="utf-8")
    for name, width in expected.items():
        assert Image.open(IMAGES / name).size == (width, WINDOWS[width])
        assert f"(screenshots/{name})" in page
    assert sum(image.stat().st_size for image in IMAGES.iterdir()) < 700_000


def test_the_images_are_of_the_numbers_in_results() -> None:
    """Else an old run was photographed, or the docs are of one."""
    results = (
        (DOCS / "results.md").read_text(encoding="utf-8").partition("## Quickstart\n")[2].partition("**Reading.**")[0]
    )
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in results.splitlines() if line[:1] == "|"]
    starts = [i for i, line in enumerate(lines) if line[0] == "model"]
    written = [lines[i:j] for i, j in zip(starts, [*starts[1:], len(lines)], strict=True)]
    assert len(written) == 2
    made = parse_json((IMAGES / NUMBERS).read_bytes())["tables"]
    for headings, _, *rows in written:
        (table,) = [table for table in made if set(headings) <= set(table[0])]
        places = [table[0].index(heading) for heading in headings]
        assert rows == [[row[place] for place in places] for row in table[1:]]


def test_a_page_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "evaluation" / "report.html"
    assert refusal(lambda: shoot(tmp_path, tmp_path / "out")) == (
        f"'{missing}' is not there. `make screenshots` makes it."
    )
    assert not (tmp_path / "out").exists()
