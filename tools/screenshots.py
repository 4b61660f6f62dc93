"""Take the pictures of the page of mlm-serve that README.md and docs/serving.md show.

    python -m tools.screenshots

It runs in the repository, starts the server of the small model and Chromium (tools/browser.sh), and writes docs/images.
"""

import io
from pathlib import Path

import click
from PIL import Image

from tests.helpers.browser import BROWSER, Page, browsing
from tests.helpers.page import enter, load
from tests.helpers.serve import serving

_FOLDER = Path(__file__).resolve().parent.parent / "docs/images"
_COLOURS = 64


@click.command()
def main() -> None:
    """Write docs/images."""
    if BROWSER is None:
        raise click.ClickException("there is no Chromium; install it with: bash tools/browser.sh")
    _FOLDER.mkdir(exist_ok=True)
    with serving() as (url, _), browsing() as page:
        load(page, url)
        page.screen(760, 600)
        enter(page, "It is one of the [MASK] films of the year.", "greatest, worst, most boring")
        _take(page, "predictions")
        enter(page, "The film was good, but I enjoyed the umbrella most.")
        _take_words(page, "surprise")
        page.screen(390, 844, touch=True, dark=True, scale=1.5)
        enter(page, "The film was good, but I enjoyed the umbrella most.")
        _take_words(page, "phone")
        page.screen(760, 600)
        enter(page, "הסרט Breaking Bad היה טוב מאוד.")
        _take_words(page, "right-to-left")


def _take_words(page: Page, name: str) -> None:
    page.until("document.querySelector('#instead .row')")
    _take(page, name)


def _take(page: Page, name: str) -> None:
    page.run("document.activeElement.blur()")
    picture = Image.open(io.BytesIO(page.picture())).convert("RGB").quantize(_COLOURS)
    path = _FOLDER / f"{name}.png"
    picture.save(path, optimize=True)
    click.echo(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
