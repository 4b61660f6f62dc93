"""What the tests of the page do in it, and measure."""

import json
from decimal import Decimal

from .browser import Page

__all__ = ["assert_shown", "enter", "gap", "least_contrasts", "load", "look_at", "outside", "rows", "value"]

_LEAST_CONTRASTS = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const paint = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([red, green, blue]) => [red, green, blue].map(each => each / 255)
    .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
    .reduce((sum, each, at) => sum + each * [0.2126, 0.7152, 0.0722][at], 0);
  const contrast = (one, other) => {
    const [low, high] = [light(paint(one)), light(paint(other))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const style = (element, part) => getComputedStyle(element, part);
  const paper = element => paint(style(element).backgroundColor)[3] === 255 || !element.parentElement
    ? style(element).backgroundColor : paper(element.parentElement);
  const texts = [], edges = [];
  for (const each of document.body.querySelectorAll("*")) {
    if (!each.checkVisibility() || each.tagName === "SCRIPT") continue;
    const name = `${each.tagName} ${each.textContent.slice(0, 20)}`;
    const written = [...each.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (written || "value" in each) {
      texts.push([contrast(style(each).color, paper(each)), name]);
      // A text on a bar stands half on the bar and half on the paper.
      const bar = each.closest(".row")?.firstChild;
      if (bar) texts.push([contrast(style(each).color, style(bar).backgroundColor), name]);
    }
    if (each.placeholder) texts.push([contrast(style(each, "::placeholder").color, paper(each)), "placeholder"]);
    if (each.matches("textarea, input, button:not(.row)"))
      edges.push([contrast(style(each).borderTopColor, paper(each.parentElement)), name]);
  }
  return [texts, edges].map(all => all.sort(([one], [other]) => one - other)[0]);
})()
"""

_OUTSIDE = """
[...document.body.querySelectorAll("*")].filter(each => each.checkVisibility() && each.tagName !== "I")
  .filter(each => [...each.getClientRects()].some(box => box.right > innerWidth + 0.5 || box.left < -0.5))
  .map(each => `${each.tagName} ${each.textContent.slice(0, 30)}`)
"""


def load(page: Page, url: str) -> Page:
    """Load the page, with its first answer."""
    page.screen(1000, 800)
    page.requests.clear()
    page.problems.clear()
    page.open(url)
    page.answered()
    return page


def enter(page: Page, text: str, candidates: str = "") -> None:
    """Write a text and candidates, and ask."""
    page.click("#candidates")
    page.write(candidates)
    page.click("#text")
    page.write(text)
    page.press("Enter")
    page.answered()


def rows(page: Page, list_: str = "ol") -> list[tuple[str, str]]:
    """Return label and number of each bar."""
    return list(zip(page.texts(f"{list_} .row bdi"), page.texts(f"{list_} .row > span"), strict=True))


def assert_shown(found: list[tuple[str, str]], expected: list[tuple[str, float]]) -> None:
    """Check labels, and numbers to the last digit shown, which other processors and threads may round otherwise."""
    assert [label for label, _ in found] == [label for label, _ in expected]
    for (label, shown), (_, number) in zip(found, expected, strict=True):
        unit = 10.0 ** int(Decimal(shown).as_tuple().exponent)
        assert abs(float(shown) - number) < 0.6 * unit, label
        assert unit <= 0.1 or number > 9, f"{label}: {shown} has too few digits"


def value(page: Page) -> str:
    """Return the text in the field."""
    return str(page.run("document.getElementById('text').value"))


def look_at(page: Page, word: str) -> None:
    """Wait for the alternatives of a word."""
    page.until(f"document.querySelector('[aria-live]').textContent.includes({json.dumps(f'“{word}”')})")


def gap(page: Page, side: str) -> int:
    """Return the widest gap between a side of a row, inside its border, and that of its bar."""
    box = "getBoundingClientRect()"
    widest: float = max(page.each(".row", f"Math.abs(each.{box}.{side} - each.firstChild.{box}.{side}) - 1"))
    return round(widest)


def least_contrasts(page: Page) -> tuple[tuple[float, str], tuple[float, str]]:
    """Return the least contrast of a text with what is behind it, and of the edge of a control, with the elements."""
    text, edge = page.run(_LEAST_CONTRASTS)
    return text, edge


def outside(page: Page) -> list[str]:
    """Return the elements that are wider than the window."""
    found: list[str] = page.run(_OUTSIDE)
    return found
