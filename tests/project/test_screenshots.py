"""docs/screenshots: what `make screenshots` makes is there, whole and small."""

from pathlib import Path

from PIL import Image

from tests.support.screenshots import SCHEMES, WINDOWS, shoot
from tests.support.written import refusal

IMAGES = Path(__file__).parents[2] / "docs" / "screenshots"
PAGES = ("report", "report-samples", "inspect")


def test_each_page_is_there_at_each_width_in_each_scheme_and_all_are_small() -> None:
    expected = {f"{page}-{width}-{scheme}.png" for page in PAGES for width in WINDOWS for scheme in SCHEMES}
    assert {image.name for image in IMAGES.iterdir()} == expected
    for image in IMAGES.iterdir():
        width = int(image.stem.split("-")[-2])
        assert Image.open(image).size == (width, WINDOWS[width])
    assert sum(image.stat().st_size for image in IMAGES.iterdir()) < 600_000


def test_a_page_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    missing = f"{tmp_path / 'report.html'}#samples"
    assert refusal(lambda: shoot([missing], tmp_path / "out")) == (
        f"'{missing}' is not there. `make quickstart` makes the pages."
    )
    assert not (tmp_path / "out").exists()
