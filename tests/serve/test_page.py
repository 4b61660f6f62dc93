"""The page in a real browser: it shows what the library answers, by mouse, keyboard and touch, in every layout."""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlm_infer import MaskFiller
from tests.helpers.browser import BROWSER, Page, browsing
from tests.helpers.page import assert_shown, enter, gap, least_contrasts, load, look_at, outside, rows, value
from tests.helpers.paths import SHIPPED
from tests.helpers.serve import serving

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium; install it with: bash tools/browser.sh")

MASKED = "The acting was [MASK] and the plot made no sense."
TWO = "The [MASK] was [MASK]."
WHOLE = "The plot 😀 unbelievably made no sense."
HEBREW = "הסרט Breaking Bad היה ממש טוב."
MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the small model."""
    with serving() as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    """One browser for all tests; each loads the page anew."""
    with browsing() as page:
        yield page


@pytest.fixture
def page(browser: Page, url: str) -> Page:
    """The page on a desktop, with its first answer."""
    return load(browser, url)


def test_predictions_are_those_of_the_library(page: Page, shipped: MaskFiller) -> None:
    """The page begins with an answer, tells the model and the time, and a click on a bar fills in."""
    best = shipped.fill(MASKED, top_k=8).masks[0].predictions
    assert_shown(rows(page), [(each.text, each.score) for each in best])
    widths = page.each(".row i", "parseFloat(each.style.width)")
    assert widths == pytest.approx([100 * each.score / best[0].score for each in best], rel=1e-3)
    assert page.texts("#model") == ["english-small, bert, int8, CPUExecutionProvider"]
    assert re.fullmatch(r"Answered in \d+ ms", page.texts("#status")[0])
    page.click(".row", 2)
    page.answered()
    assert value(page) == best[2].sequence
    assert page.texts("#words")
    page.click("#undo")
    page.answered()
    assert value(page) == MASKED
    assert rows(page)[0][0] == best[0].text
    page.click("#mask")
    assert value(page).count("[MASK]") == 2
    assert not page.problems


def test_candidates_and_several_masks(page: Page, shipped: MaskFiller) -> None:
    """Each mask has its predictions and its ranking; filling one predicts the other again."""
    enter(page, TWO, "very bad, film،great,")
    assert page.texts("h2") == [f"Mask {at}: {kind}" for at in (1, 2) for kind in ("predictions", "candidates")]
    filled, ranked = shipped.fill(TWO, top_k=8).masks, shipped.rank(TWO, [["very bad", "film", "great"]] * 2).masks
    expected = []
    for mask, order in zip(filled, ranked, strict=True):
        expected += [(each.text, each.score) for each in mask.predictions]
        expected += [(each.text, math.exp(each.logprob)) for each in order]
    assert_shown(rows(page), expected)
    page.click("section:nth-of-type(2) .row", 1)
    page.answered()
    once = filled[1].predictions[1].sequence
    assert value(page) == once
    again = shipped.fill(once, top_k=8).masks[0].predictions
    assert_shown(rows(page)[:8], [(each.text, each.score) for each in again])


def test_joint_fillings(page: Page, shipped: MaskFiller) -> None:
    """The sequences of `infill` with its scores; what was filled in is marked."""
    for text in (TWO, "The [MASK] was [MASK:1-3]."):
        enter(page, text)
        if text == TWO:
            page.click("#jointly")
            page.answered()
        found = shipped.infill(text)
        assert_shown(rows(page), [(each.sequence, each.score) for each in found])
        assert page.texts("mark") == [filling for each in found for filling in each.fillings]
    page.click(".row")
    page.answered()
    assert value(page) == found[0].sequence


def test_surprise_of_words(page: Page, shipped: MaskFiller) -> None:
    """Each word has the bits of its tokens, and its alternatives once it is pointed at."""
    enter(page, WHOLE)
    (scored,) = shipped.score([WHOLE], method="pll_word_l2r")
    bits = dict.fromkeys(("The", "plot", "😀", "unbelievably", "made", "no", "sense", "."), 0.0)
    for each in scored.tokens:
        (word,) = (word for word in bits if 0 <= each.span[0] - WHOLE.index(word) < len(word))
        bits[word] -= each.logprob / math.log(2)
    assert len(scored.tokens) > len(bits)
    shown = page.each("#words b", "getComputedStyle(each, '::after').content")
    assert_shown(list(zip(page.texts("#words b"), map(json.loads, shown), strict=True)), list(bits.items()))
    (perplexity,) = re.findall(r"Pseudo-perplexity ([\d.]+)\. ", page.texts(".note")[1])
    assert float(perplexity) == pytest.approx(scored.pseudo_perplexity, rel=0.01)
    heat = page.each("#words b", "parseFloat(each.style.getPropertyValue('--heat'))")
    assert heat == pytest.approx([min(100, 5 * each) for each in bits.values()], abs=0.7)
    look_at(page, max(bits, key=bits.__getitem__))
    page.point("#words b", 4)
    look_at(page, "made")
    instead = shipped.fill(WHOLE.replace("made", "[MASK]"), top_k=5).masks[0].predictions
    assert_shown(rows(page, "#instead ol"), [(each.text, each.score) for each in instead])
    page.click("#instead .row", 1)
    page.answered()
    assert value(page) == instead[1].sequence


def test_a_text_longer_than_the_model(page: Page) -> None:
    """It is seen through a window."""
    enter(page, "a good film " * 171)
    assert page.texts("#words b") == ["a", "good", "film"] * 171
    enter(page, "a good film " * 171 + "[MASK].")
    assert len(rows(page)) == 8


def test_everything_by_keyboard(page: Page, shipped: MaskFiller) -> None:
    """Tab, Enter, Space and arrows; the focus is visible and never lost."""
    page.press("Tab")
    page.write("A [MASK] film.")
    page.press("Enter", shift=True)
    assert value(page) == "A [MASK] film.\n"
    page.write("A [MASK] film.")
    page.press("Enter")
    page.answered()
    best = shipped.fill("A [MASK] film.", top_k=8).masks[0].predictions
    assert_shown(rows(page), [(each.text, each.score) for each in best])
    names = []
    for _ in range(6):
        page.press("Tab")
        names.append(page.run("document.activeElement.textContent || document.activeElement.id"))
        outline = page.run("getComputedStyle(document.activeElement).outlineWidth")
        assert outline == "3px", names
    assert names[:5] == ["candidates", "Predict", "Fill all masks jointly", "Show surprise", "Insert [MASK]"]
    page.press("Tab")
    page.press(" ")
    page.answered()
    assert value(page) == best[1].sequence
    assert page.run("document.activeElement.id") == "answer"
    page.until("document.querySelector('#instead .row')")
    page.press("Tab")
    assert page.run("document.activeElement.ariaSelected") == "true"
    page.press("Home")
    look_at(page, "A")
    page.press("ArrowRight", times=2)
    look_at(page, "film")
    page.press("End")
    page.press("ArrowLeft")
    look_at(page, "film")
    page.press("Tab")
    page.press("Enter")
    page.answered()
    instead = shipped.fill(best[1].sequence.replace("film", "[MASK]"), top_k=5).masks[0].predictions
    assert value(page) == instead[0].sequence


def test_a_screen_reader_gets_names(page: Page) -> None:
    """Every control, word and bar has its role and its name, and messages are live."""
    found = page.roles()
    for expected in (
        ("textbox", "Text"),
        ("textbox", "Candidates to rank, separated by commas (optional)"),
        ("button", "Fill all masks jointly"),
        ("heading", "Predictions"),
    ):
        assert expected in found
    assert {"alert", "status", "list", "main"} <= {role for role, _ in found}
    assert any(role == "button" and re.fullmatch(r"fascinating 0\.\d{3}", name) for role, name in found), found
    enter(page, "A good film.")
    found = page.roles()
    assert ("listbox", "Surprise of each word, in bits") in found
    names = [name for role, name in found if role == "option"]
    assert [re.sub(r"[\d.]+ bits", "N bits", name) for name in names] == [
        f"{word}, N bits" for word in ["A", "good", "film", "."]
    ]
    assert all(name for role, name in found if role in ("button", "textbox", "listbox", "option"))


def test_light_and_dark(page: Page) -> None:
    """The colours follow the user's, and text can be read on each of them."""
    papers = set()
    for dark in (False, True):
        page.screen(1000, 800, dark=dark)
        papers.add(page.run("getComputedStyle(document.body).backgroundColor"))
        for text in (MASKED, WHOLE, MASKED * 500):
            enter(page, text, "good, bad")
            text_contrast, edge_contrast = least_contrasts(page)
            assert text_contrast[0] >= 4.5, (dark, text_contrast)
            assert edge_contrast[0] >= 3, (dark, edge_contrast)
    assert len(papers) == 2


@pytest.mark.parametrize(("width", "height"), [(390, 844), (320, 568)])
def test_phone(page: Page, shipped: MaskFiller, width: int, height: int) -> None:
    """Nothing is wider than the screen, and a tap does what pointing does."""
    page.screen(width, height, touch=True)
    long = "Donaudampfschifffahrtsgesellschaft" * 4
    one = f"{long} is [MASK]. " + "A long text. " * 20
    for text in (one, f"{long} is [MASK] or [MASK].", long + " good. " * 30, ""):
        enter(page, text, f"{long}, good")
        assert outside(page) == []
        assert page.run("document.documentElement.scrollWidth") == width
        # However many words there are, their alternatives are in reach.
        assert page.each("#words", "each.clientHeight") <= [height / 2 + 1]
    page.click("#text")
    page.write(TWO)
    page.tap("#jointly")
    page.answered()
    assert outside(page) == []
    enter(page, "A good film.")
    page.tap("#words b", 1)
    look_at(page, "good")
    page.tap("#instead .row", 1)
    page.answered()
    assert value(page) == shipped.fill("A [MASK] film.", top_k=5).masks[0].predictions[1].sequence
    assert page.run("document.activeElement.id") != "text"  # which would open the phone's keyboard


def test_right_to_left(page: Page) -> None:
    """Words run and bars grow as the text does; a run of the other direction keeps its own order."""
    enter(page, HEBREW)
    assert page.run("getComputedStyle(document.getElementById('text')).direction") == "rtl"
    assert page.texts("#words b") == ["הסרט", "Breaking", "Bad", "היה", "ממש", "טוב", "."]
    x = page.each("#words b", "each.getBoundingClientRect().x")
    assert sorted(range(7), key=x.__getitem__) == [6, 5, 4, 3, 1, 2, 0]
    page.click("#words b", 4)
    look_at(page, "ממש")
    page.press("ArrowLeft")
    look_at(page, "טוב")
    assert gap(page, "right") == 0
    assert gap(page, "left") > 50
    enter(page, "הסרט היה [MASK] מאוד.", "טוב, good")
    assert gap(page, "right") == 0
    enter(page, MASKED)
    assert gap(page, "left") == 0
    assert gap(page, "right") > 50


def test_text_is_never_markup(page: Page, url: str) -> None:
    """Whatever is typed stands there as text, in answers and in errors, and nothing runs or is fetched."""
    typed = f"{MARKUP} was [MASK] <script>alert(2)</script> and [MASK]"
    enter(page, typed, f"<b>bold</b>, {MARKUP}")
    assert {MARKUP, "<b>bold</b>"} <= dict(rows(page)).keys()
    for button in ("#jointly", "#surprise"):
        page.click(button)
        page.answered()
        assert not page.run("document.querySelector('#answer :is(img, script), #error *')")
    assert MARKUP in page.texts("#error")[0]
    enter(page, typed.replace("[MASK]", "good"))
    assert "img" in page.texts("#words b")
    assert page.run("document.querySelectorAll('img, b:not([role=option])').length") == 0
    assert not page.dialogs
    assert not page.problems
    assert page.requests
    assert {each.partition("/")[2].partition("/")[2].partition("/")[0] for each in page.requests} == {url[7:]}


def test_what_a_model_says_is_never_markup(browser: Page, tmp_path: Path) -> None:
    """A model whose best prediction is an element: it is shown and filled in as text."""
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "model"))
    tokenizer, manifest = folder / "tokenizer.json", folder / "mlm_infer.json"
    values = json.loads(tokenizer.read_text("utf-8"))
    values["model"]["vocab"][MARKUP] = values["model"]["vocab"].pop("fascinating")
    tokenizer.write_text(json.dumps(values), "utf-8")
    told = json.loads(manifest.read_text("utf-8"))
    content = tokenizer.read_bytes()
    told["files"]["tokenizer.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps(told), "utf-8")
    with serving(str(folder)) as (address, _):
        page = load(browser, address)
        assert rows(page)[0][0] == MARKUP
        page.click(".row")
        page.answered()
        assert value(page) == MASKED.replace("[MASK]", MARKUP)
        assert page.run("document.querySelectorAll('img').length") == 0
        assert not page.dialogs


def test_errors(browser: Page) -> None:
    """One line says what the server refuses, or that it is gone; the page goes on."""
    with serving() as (address, server):
        page = load(browser, address)
        page.click("#text")
        page.write("No mask.")
        page.click("#jointly")
        page.answered()
        assert page.texts("#error") == ["the text has no mask; write [MASK] where a word is missing: 'No mask.'"]
        assert page.texts("#status") == [""]
        assert not page.texts("#answer *")
        enter(page, MASKED)
        assert page.texts("#error") == [""]
        assert rows(page)
        server.terminate()
        server.wait(30)
        page.click("form .main", 1)
        page.answered()
        assert page.texts("#error") == ["The server does not answer; is mlm-serve still running?"]


def test_an_older_answer_comes_too_late(page: Page) -> None:
    """A slow question, then a quick one: only the newer has its answer, also after the older would have come."""
    page.click("#text")
    page.write("a good film " * 160)
    page.press("Enter")
    assert page.run("document.getElementById('answer').ariaBusy") == "true"
    assert page.texts("#status") == ["The model is asked …"]
    enter(page, MASKED)
    expected = rows(page)
    assert len(expected) == 8
    page.until("fetch('metrics').then(answer => answer.text()).then(text => text.includes('in_progress 0.0'))")
    assert rows(page) == expected
    assert not page.texts("#words")


def test_token(browser: Page) -> None:
    """The page asks for the token, says when it is wrong, and then answers; any characters may stand in it."""
    with serving(MLM_SERVE_TOKEN="gehéim ключ") as (address, _):
        page = load(browser, address)
        assert page.texts("#error") == ["This server wants a token."]
        assert page.run("document.activeElement.id") == "token"
        page.write("other")
        page.press("Enter")
        page.answered()
        assert page.texts("#error") == ["This is not the token of the server."]
        page.write("gehéim ключ")
        page.press("Enter")
        page.answered()
        assert page.texts("#error") == [""]
        assert len(rows(page)) == 8
        assert page.run("getComputedStyle(document.getElementById('secret')).display") == "none"
