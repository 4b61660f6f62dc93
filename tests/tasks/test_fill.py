"""`fill` and `fill_batch`: typed results, the user's text, batches, and invalid arguments."""

import dataclasses
import math
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlm_infer import InputError, MaskFiller
from mlm_infer.text.encoder import MOST_CHARACTERS
from tests.helpers.int8 import LEAST_AGREEMENT, agreement
from tests.helpers.pipeline import NAMES, masked_sentences


@pytest.fixture(scope="module")
def filler(bundles: dict[str, Path]) -> MaskFiller:
    """The real model in fp32."""
    return MaskFiller(bundles["base"], precision="fp32")


def test_result_shape(filler: MaskFiller) -> None:
    """One mask and two give the same structure, and everything is frozen."""
    for text, masks in (("A [MASK] film.", 1), ("A [MASK] film with a [MASK].", 2)):
        result = filler.fill(text, top_k=3)
        assert result.text == text
        assert len(result.masks) == masks
        for mask in result.masks:
            assert text[slice(*mask.span)] == "[MASK]"
            assert len(mask.predictions) == 3
            assert [each.score for each in mask.predictions] == sorted(
                (e.score for e in mask.predictions), reverse=True
            )
            for each in mask.predictions:
                assert each.score == pytest.approx(math.exp(each.logprob))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.text = "other"  # type: ignore[misc]
    assert result.to_dict()["masks"][0]["predictions"][0]["token_id"] == result.masks[0].predictions[0].token_id


def test_scores_are_probabilities_over_the_vocabulary(filler: MaskFiller) -> None:
    """The scores of the whole vocabulary sum to one."""
    result = filler.fill("A [MASK] film.", top_k=filler.info.vocab_size)
    assert sum(each.score for each in result.masks[0].predictions) == pytest.approx(1, abs=1e-4)


def test_sequence_keeps_the_users_text(filler: MaskFiller) -> None:
    """Case, spaces and quotes are kept; only the mask is replaced."""
    text = "  The  DIRECTOR's [MASK]\twas “GREAT”…\n"
    result = filler.fill(text, targets=["work", "acting"])
    for each in result.masks[0].predictions:
        assert each.sequence == text.replace("[MASK]", each.text)


@pytest.mark.parametrize(("name", "mask"), [("base", "<mask>"), ("roberta", "[MASK]")])
def test_other_spelling_of_the_mask(name: str, mask: str, bundles: dict[str, Path]) -> None:
    """Every model accepts `[MASK]` and `<mask>`, and spans refer to the user's text."""
    filler = MaskFiller(bundles[name], precision="fp32")
    own = filler.info.mask_token
    foreign, native = (filler.fill(f"One {each} film and a {each}.") for each in (mask, own))
    assert [m.predictions[0].logprob for m in foreign.masks] == [m.predictions[0].logprob for m in native.masks]
    assert all(foreign.text[slice(*each.span)] == mask for each in foreign.masks)


def test_byte_level_words(bundles: dict[str, Path]) -> None:
    """A target is found with and without a leading space, and gets one space in the text."""
    filler = MaskFiller(bundles["roberta"], precision="fp32")
    spaced = filler.fill("This is a <mask> of mine.", targets=[" film"]).masks[0].predictions[0]
    plain = filler.fill("This is a <mask> of mine.", targets="film").masks[0].predictions[0]
    assert spaced == plain
    assert (plain.token, plain.text, plain.sequence) == ("Ġfilm", "film", "This is a film of mine.")
    touching = filler.fill("This is a<mask> of mine.", targets="film").masks[0].predictions[0]
    assert touching.sequence == "This is a film of mine."


def test_word_piece_continuations_join(filler: MaskFiller) -> None:
    """A token that continues a word joins the word before the mask."""
    found = [
        each for each in filler.fill("He was walk [MASK].", top_k=2000).masks[0].predictions if each.token == "##ing"
    ]
    assert [(each.text, each.sequence) for each in found] == [("ing", "He was walking.")]


@pytest.mark.parametrize("name", NAMES)
def test_batch_equals_single(name: str, bundles: dict[str, Path]) -> None:
    """The answer for a text does not depend on its batch, within fp32 rounding."""
    filler = MaskFiller(bundles[name], precision="fp32")
    texts = masked_sentences(filler.info.mask_token, 120, seed=3)
    random.Random(0).shuffle(texts)
    for together, text in zip(filler.fill_batch(texts), texts, strict=True):
        alone = filler.fill(text)
        assert together.text == text
        for one, other in zip(together.masks, alone.masks, strict=True):
            assert (one.span, one.position) == (other.span, other.position)
            np.testing.assert_allclose(
                [each.score for each in one.predictions], [each.score for each in other.predictions], atol=1e-6
            )


def test_many_masks_first_last_and_longest(filler: MaskFiller) -> None:
    """Eight masks, masks at both ends, and a text of maximum length."""
    assert len(filler.fill(" ".join(["[MASK]"] * 8)).masks) == 8
    room = filler.info.max_length - 2
    longest = filler.fill("[MASK] " + "good " * (room - 2) + "[MASK]")
    assert [mask.position for mask in longest.masks] == [1, room]


def test_no_texts(filler: MaskFiller) -> None:
    """An empty list gives an empty list."""
    assert filler.fill_batch([]) == []
    assert filler([]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A film.", r"no mask; write \[MASK\]"),
        ("", "empty"),
        ("  \n", "empty"),
        (7, "int"),
        (None, "NoneType"),
        ("good " * 511 + "[MASK]", "514 tokens, this model takes at most 512"),
    ],
)
def test_wrong_text(filler: MaskFiller, text: Any, message: str) -> None:
    """The error says what is wrong, and is a ValueError as in the pipeline."""
    with pytest.raises(InputError, match=message) as caught:
        filler.fill(text)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("top_k", [0, -1, 30523, 2.0, "5", None, True])
def test_wrong_top_k(filler: MaskFiller, top_k: Any) -> None:
    """Out of range or of another type: the error contains the range."""
    with pytest.raises(InputError, match="from 1 to 30522"):
        filler.fill("A [MASK].", top_k=top_k)
    with pytest.raises(InputError, match="from 1 to 30522"):
        filler("A [MASK].", top_k=top_k)


@pytest.mark.parametrize("targets", [[], [""], [3], ["a whole phrase"], ["zzzzxq"]])
def test_wrong_targets(filler: MaskFiller, targets: Any) -> None:
    """A target must be one token of the model."""
    with pytest.raises(InputError, match="target"):
        filler.fill("A [MASK].", targets=targets)


def test_wrong_list(filler: MaskFiller) -> None:
    """The error names the invalid text; a string is not a list."""
    with pytest.raises(InputError, match="text 1 of 3 is a int"):
        filler.fill_batch(["A [MASK].", 3, "B [MASK]."])  # type: ignore[list-item]
    with pytest.raises(InputError, match="text 1 of 2 has no mask"):
        filler(["A [MASK].", "no"])
    with pytest.raises(InputError, match="give a list"):
        filler.fill_batch("A [MASK].")


def test_closed(bundles: dict[str, Path]) -> None:
    """A closed filler raises an error that says so."""
    with MaskFiller(bundles["bert"]) as filler:
        filler.fill("A [MASK].")
    with pytest.raises(InputError, match="closed"):
        filler.fill("A [MASK].")


def test_shipped_model_fills() -> None:
    """The model of the package opens by default and predicts plausible words."""
    filler = MaskFiller()
    assert filler.info.precision == "int8"
    words = {each.text for each in filler.fill("This is one of the best [MASK] of the year.").masks[0].predictions}
    assert words & {"films", "movies", "pictures"}


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("fill", {"targets": 5}, "targets is a int"),
        ("fill", {"targets": [["good"]]}, "is not a word"),
        ("fill", {"deny": [None, 5]}, "deny holds None"),
        ("fill", {"pattern": b"good"}, "pattern is b'good'"),
        ("fill", {"targets": ["\ud800"]}, "is not a word"),
        ("__call__", {"targets": 5}, "targets is a int"),
        ("__call__", {"targets": ["\ud800"]}, "surrogate"),
        ("rank", {"candidates": ["good", "\ud800"]}, "is not a word or phrase"),
    ],
)
def test_arguments_of_the_wrong_type(method: str, arguments: dict[str, Any], message: str) -> None:
    """Found by fuzzing: an InputError, and no other exception."""
    with pytest.raises(InputError, match=message):
        getattr(MaskFiller(), method)("A [MASK] film.", **arguments)


def test_text_with_half_a_character() -> None:
    """A Python string may contain a lone surrogate; UTF-8 and the tokenizer may not."""
    for call in (MaskFiller().fill, MaskFiller(), MaskFiller().count_tokens):
        with pytest.raises(InputError, match="half a surrogate pair"):
            call("A [MASK] \ud800 film.")


def test_int8_agrees(bundles: dict[str, Path]) -> None:
    """int8 agrees with fp32 as often as its budget requires, on sentences that no export used."""
    texts = masked_sentences("[MASK]", 1060, seed=5)
    exact, small = (MaskFiller(bundles["base"], precision=each).fill_batch(texts) for each in ("fp32", "int8"))
    share, masks = agreement(exact, small)
    # So many masks tell a share to within 2 % (three standard deviations), and int8 keeps 97 %.
    assert masks > 1800
    assert share >= LEAST_AGREEMENT


def test_words_only_where_the_mask_begins_the_text(bundles: dict[str, Path]) -> None:
    """A byte-level vocabulary spells the first word of a text without its marker."""
    filler = MaskFiller(bundles["roberta"], precision="fp32")
    (prediction,) = filler.fill("<mask> is good.", words_only=True, allow=["ing"]).masks[0].predictions
    assert prediction.text == "ing"
    assert filler.infill("<mask> is good.", words_only=True, allow=["ing"])[0].fillings == ("ing",)
    with pytest.raises(InputError, match="no token of the vocabulary is left"):
        filler.fill("It is <mask>.", words_only=True, allow=["ing"])
    texts = ["<mask> a", "A <mask>", "<mask> b"]
    found = list(filler.fill_stream(texts, words_only=True, allow=["ing"], on_error="return"))
    assert [isinstance(each, InputError) for each in found] == [False, True, False]


def test_a_text_beyond_the_limit_is_refused(filler: MaskFiller) -> None:
    """In every method, with and without windows; the error contains the length and the limit."""
    text = "a " * (MOST_CHARACTERS // 2) + "[MASK]"
    for ask in (filler.fill, filler.infill, partial(filler.fill, long_text="window"), filler.count_tokens, filler):
        with pytest.raises(InputError, match=r"1,000,006 characters, .* at most 1,000,000; cut it"):
            ask(text)
    with pytest.raises(InputError, match="1,000,006 characters"):
        filler.score([text.replace("[MASK]", "abcdef")])


def test_count_tokens(bundles: dict[str, Path]) -> None:
    """The number of tokens that counts towards the maximum, special tokens included."""
    filler = MaskFiller(bundles["base"])
    assert filler.count_tokens("") == 2
    assert filler.count_tokens("good good <mask>") == filler.count_tokens("good good [MASK]") == 5
    limit = filler.info.max_length
    filler.fill("good " * (limit - 3) + "[MASK]")
    with pytest.raises(InputError, match=f"{limit + 1} tokens, this model takes at most {limit}"):
        filler.fill("good " * (limit - 2) + "[MASK]")
