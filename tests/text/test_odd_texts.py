"""Unusual and long texts: rare characters, other mask spellings, thousands of masks, one endless word."""

import tracemalloc
from pathlib import Path
from random import Random

import pytest

from mlm_infer import InputError, MaskFiller
from mlm_infer.tasks.score import _masked


@pytest.mark.parametrize(
    "text",
    [
        "[SEP] [MASK] [CLS]",
        "[CLS][SEP][MASK][PAD][UNK]",
        "\0[MASK]\0\0",
        "\u202eערב [MASK] ארץ\u202c",
        "مرحبا [MASK] يا [MASK]",
        "e" + "\u0301" * 5_000 + " [MASK]",
        "\u200b\ufeff[MASK]\u2028\x85",
        "a" * 50_000 + " [MASK]",
    ],
)
def test_odd_texts(shipped: MaskFiller, text: str) -> None:
    """Special tokens, NUL, right-to-left text, combining marks, one endless word: the user's text is kept."""
    result = shipped.fill(text, top_k=3)
    assert len(result.masks) == text.count("[MASK]")
    for mask in result.masks:
        assert text[slice(*mask.span)] == "[MASK]"
        for each in mask.predictions:
            assert each.sequence.endswith(text[mask.span[1] :])
            assert each.sequence.startswith(text[: mask.span[0]].rstrip(" "))
    for infilling in shipped.infill(text, top_k=1):
        assert infilling.sequence.endswith(text[result.masks[-1].span[1] :])


def test_windows_are_placed_right_in_any_spelling(shipped: MaskFiller) -> None:
    """Windows and answers do not depend on the spelling of the masks."""
    random = Random(3)
    for _ in range(2):
        words = random.choices(["the", "film", "Straße", "naïve", "e\u0301", "映画", "{}", "{} ", "{}"], k=600)
        text, plain = (" ".join(words).replace("{}", each) for each in ("<mask>", "[MASK]"))
        one, other = (shipped.fill(each, long_text="window", top_k=2) for each in (text, plain))
        for mine, own in zip(one.masks, other.masks, strict=True):
            assert mine.window is not None
            assert own.window is not None
            assert text[slice(*mine.window)].replace("<mask>", "[MASK]") == plain[slice(*own.window)]
            assert text[slice(*mine.span)] == "<mask>"
            assert [each.logprob for each in mine.predictions] == [each.logprob for each in own.predictions]


@pytest.mark.timeout(30)
def test_a_text_of_many_masks_is_linear(shipped: MaskFiller) -> None:
    """Placing the windows of 12,000 masks takes linear time; in quadratic time it took a minute."""
    (parts,) = shipped.model.encoder.try_encode(["<mask> " * 12_000], "window")
    assert not isinstance(parts, InputError)
    assert len(parts) == 12_000
    assert parts[-1].spans == ((7 * 11_999, 7 * 12_000 - 1),)
    assert parts[-1].window == (7 * (12_000 - 510), 7 * 12_000 - 1)


def test_a_long_text_is_scored_in_little_memory(shipped: MaskFiller) -> None:
    """Masked windows are made on demand; all at once, they took 4 KB per token."""
    whole = shipped.model.encoder.whole("good " * 20_000, "the text", "window")
    tracemalloc.start()
    asked = [_masked(whole, place, "pll_word_l2r", 512, 103) for place in range(1, 20_001)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000
    assert [(asked[place].ids == 103).sum() for place in (0, 700, -1)] == [1, 1, 1]


@pytest.mark.timeout(60)
def test_a_text_that_is_one_word(bundles: dict[str, Path]) -> None:
    """With `pll_word_l2r`, the special token at the end of the window is not masked."""
    filler = MaskFiller(bundles["roberta"], precision="fp32")
    whole = filler.model.encoder.whole("ab" * 30_000, "the text", "window")
    assert len(set(whole.words[1:-1])) == 1
    longest, mask = filler.info.max_length, filler.model.manifest.mask_id
    asked = [_masked(whole, place, "pll_word_l2r", longest, mask) for place in range(1, len(whole.ids) - 1)]
    for each in (asked[0], asked[len(asked) // 2], asked[-1]):
        (index,) = each.positions
        ids = each.ids
        assert len(ids) == longest
        assert (ids[index:-1] == mask).all()
        assert ids[-1] == whole.ids[-1]
