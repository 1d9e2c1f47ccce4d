"""`make screenshots`: the quickstart's report and pages of `inspect` in a real browser, and the numbers they are of."""

import io
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data.command.errors import UserError, exit_on_user_error
from data.command.terminal import say
from data.command.wording import size
from evaluation.report.files import read_report
from evaluation.report.tables import tables

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Width -> height, in pixels: a window of a desk's screen, and a phone.
WINDOWS = {1280: 900, 390: 844}
SCHEMES = ("light", "dark")
COLOURS = 48  # of an image: enough for text and figures, and a fifth of the bytes
NUMBERS = "made.json"


@dataclass(frozen=True)
class View:
    """What an image shows.

    Attributes:
        name: its file's, before width and scheme.
        page: in the quickstart's directory, with its address's end.
        turned_to: JavaScript that turns to what is shown; "" for the top of the page.
    """

    name: str
    page: str
    turned_to: str = ""
    widths: tuple[int, ...] = tuple(WINDOWS)
    schemes: tuple[str, ...] = SCHEMES

    @property
    def images(self) -> dict[str, tuple[int, str]]:
        """Name of each image -> width and scheme."""
        return {f"{self.name}-{w}-{scheme}.png": (w, scheme) for w in self.widths for scheme in self.schemes}


REPORT = "evaluation/report.html"
VIEWS = (
    View("report", REPORT),
    View(
        "report-table",
        REPORT,
        "const table = document.querySelector('.scroll'); table.closest('section').scrollIntoView();"
        "table.scrollLeft = 200",
        widths=(390,),
    ),
    View(
        "report-columns",
        REPORT,
        "const meanings = document.querySelector('.meanings'); meanings.open = true;"
        "meanings.scrollIntoView({block: 'end'})",
        schemes=("light",),
    ),
    View("report-plots", REPORT, "document.querySelector('.figures').closest('section').scrollIntoView()"),
    View("report-samples", f"{REPORT}#samples"),
    View("inspect", "inspect.html"),
    View(
        "inspect-edits", "inspect-edits.html", "document.querySelector('article').scrollIntoView()", schemes=("light",)
    ),
)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Args: argv: the quickstart's directory, and where the images go."""
    run, out = map(Path, sys.argv[1:] if argv is None else argv)
    for image in shoot(run, out):
        say(f"{image}  {size(image.stat().st_size)}")
    numbers = {"tables": numbers_of(run / REPORT)}
    (out / NUMBERS).write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def shoot(run: Path, out: Path) -> list[Path]:
    """An image of each view at its widths in its schemes; replaces those there.

    Raises:
        UserError: no Chromium, no playwright, or a page is not there.
    """
    for view in VIEWS:
        page = run / view.page.partition("#")[0]
        if not page.is_file():
            raise UserError(f"'{page}' is not there. `make screenshots` makes it.")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        raise UserError("no Chromium here. Install one: apt-get install chromium.")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UserError("playwright is not installed. Install this project's extra dev.") from error
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        found = [
            _shot(browser, run, view, out / name, width, scheme)
            for view in VIEWS
            for name, (width, scheme) in view.images.items()
        ]
        browser.close()
    return found


def numbers_of(report: Path) -> list[list[list[str]]]:
    """The tables of a report as texts, headings first: what its images show, to be held to what the docs say."""
    found = tables(read_report(str(report.parent)))
    return [[table.headings, *([cell.text for cell in row] for row in table.rows)] for table in found]


def _shot(browser: Any, run: Path, view: View, path: Path, width: int, scheme: str) -> Path:
    page, _, end = view.page.partition("#")
    tab = browser.new_page(viewport={"width": width, "height": WINDOWS[width]}, color_scheme=scheme)
    tab.goto(f"{(run / page).resolve().as_uri()}#{end}")
    if view.turned_to:
        tab.evaluate(f"() => {{ {view.turned_to} }}")
    image = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
    tab.close()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
