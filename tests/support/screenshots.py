"""`make screenshots`: the report and the page of `inspect` in a real browser, at two widths, light and dark."""

import io
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from data.command.errors import UserError, exit_on_user_error
from data.command.terminal import say
from data.command.wording import size

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Width -> height, in pixels: a window of a desk's screen, and a phone.
WINDOWS = {1280: 900, 390: 844}
SCHEMES = ("light", "dark")
COLOURS = 48  # of an image: enough for text and figures, and a fifth of the bytes


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Args: argv: where the images go, then the pages, each with its view (`report.html#samples`)."""
    out, *pages = sys.argv[1:] if argv is None else argv
    for image in shoot(pages, Path(out)):
        say(f"{image}  {size(image.stat().st_size)}")


def shoot(pages: list[str], out: Path) -> list[Path]:
    """An image of the top of each page at each width in each scheme, PAGE-VIEW-WIDTH-SCHEME.png; replaces those there.

    Raises:
        UserError: no Chromium, no playwright, or no such page.
    """
    for page in pages:
        if not Path(page.partition("#")[0]).is_file():
            raise UserError(f"'{page}' is not there. `make quickstart` makes the pages.")
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
        found = [_shot(browser, page, out, width, scheme) for page in pages for width in WINDOWS for scheme in SCHEMES]
        browser.close()
    return found


def _shot(browser: Any, page: str, out: Path, width: int, scheme: str) -> Path:
    file, _, view = page.partition("#")
    tab = browser.new_page(viewport={"width": width, "height": WINDOWS[width]}, color_scheme=scheme)
    tab.goto(f"{Path(file).resolve().as_uri()}#{view}")
    image = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
    tab.close()
    path = out / ("-".join(filter(None, (Path(file).stem, view, str(width), scheme))) + ".png")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
