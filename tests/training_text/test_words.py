"""Whole words: what belongs to one, that it is selected whole, and how many tokens that makes."""

import json
import math
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlm_infer.training.blocks import Blocks, make_blocks, make_encoder
from mlm_infer.training.data import load_documents
from mlm_infer.training.encoders import CONTINUES, FastEncoder
from mlm_infer.training.masks import MaskedBlocks, MaskRule
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlm_infer import InputError
from mlm_infer.shared.samples import movie_reviews
from tests.helpers.texts import blocks_of, documents_of

FAMILIES = {"WordPiece": "bert", "byte-level BPE": "roberta", "Unigram": "xlm-roberta"}
ODD = [
    "don't stop (well-known)...",
    "  two  spaces",
    "über 3,50 € 東京 \U0001f600",
    "[MASK] <mask> in it",
    "",
    "\t",
    "a",
]


def expected_words(tokenizer: Any, text: str, tokens: list[str]) -> list[bool]:
    """For each token whether it continues a word: whether none of the pre-tokenizer's pieces begins there."""
    if any(token in text for token in tokenizer.all_special_tokens):
        return []
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert "".join(pieces) == "".join(tokens)
    starts = {0, *accumulate(map(len, pieces))}
    return [start not in starts for start in accumulate(map(len, tokens[:-1]), initial=0)][: len(tokens)]


@pytest.mark.parametrize("family", FAMILIES)
def test_words_are_those_of_the_tokenizer(family: str, tiny: dict[str, Path]) -> None:
    """Against prefixes of WordPiece, and against the pieces for byte-level BPE; the ids are those of transformers."""
    tokenizer = AutoTokenizer.from_pretrained(tiny[FAMILIES[family]])
    encoder, _ = make_encoder(tokenizer, whole_words=True)
    texts = movie_reviews()[:2000] + ODD
    found = encoder(texts)
    plain = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert found.lengths.tolist() == [len(ids) for ids in plain]
    assert (found.ids & ~CONTINUES).tolist() == [token for ids in plain for token in ids]
    rows = np.split(found.ids >= CONTINUES, found.lengths.cumsum()[:-1])
    compared = 0
    for text, ids, continues in zip(texts, plain, rows, strict=True):
        tokens = tokenizer.convert_ids_to_tokens(ids)
        if family == "WordPiece":
            expected = [token.startswith("##") for token in tokens]
        elif family == "Unigram":
            expected = [not token.startswith("▁") for token in tokens] if text.isascii() and "<" not in text else []
        else:
            expected = expected_words(tokenizer, text, tokens)
        compared += len(expected)
        assert not expected or continues.tolist() == expected, text
    assert compared > 10_000
    assert found.ids.max() >= CONTINUES


def test_punctuation_is_a_word_of_its_own(tiny: dict[str, Path]) -> None:
    """For byte-level BPE as for WordPiece, unlike by the spaces between words."""
    for name in ("bert", "roberta"):
        encoder, _ = make_encoder(AutoTokenizer.from_pretrained(tiny[name]), whole_words=True)
        assert (encoder(["film. (good)"]).ids < CONTINUES).sum() == 5


def test_words_of_a_tokenizer_that_splits_nothing(tiny: dict[str, Path]) -> None:
    """As Gemma's, which writes spaces into its tokens: one with a space begins a word. Without spaces none is known."""
    state = json.loads((tiny["xlm-roberta"] / "tokenizer.json").read_text())
    state["pre_tokenizer"] = None
    state["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    own = Tokenizer.from_str(json.dumps(state))
    texts = movie_reviews()[:50]
    found = FastEncoder(own, words=True)(texts)
    assert (found.ids < CONTINUES).sum() == sum(len(text.split(" ")) for text in texts)
    letters = Tokenizer(models.Unigram([("<unk>", 0.0), ("[MASK]", 0.0), ("a", -1.0), ("b", -1.0)], unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, mask_token="[MASK]", unk_token="<unk>")
    with pytest.raises(InputError, match="needs a tokenizer that divides text into words; leave --whole-words out"):
        make_encoder(tokenizer, whole_words=True)


def test_words_of_a_slow_tokenizer(tiny: dict[str, Path]) -> None:
    """One line that says what to do."""
    tokenizer = AutoTokenizer.from_pretrained(tiny["esm"])
    assert not tokenizer.is_fast
    with pytest.raises(InputError, match=r"whole_words needs a fast tokenizer.*leave --whole-words out") as caught:
        make_encoder(tokenizer, whole_words=True)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module", params=FAMILIES)
def masked(request: Any, tiny: dict[str, Path]) -> tuple[MaskRule, list[tuple[NDArray[np.uint32], Any]]]:
    """10,000 blocks and what masking makes of them, and the rule."""
    tokenizer = AutoTokenizer.from_pretrained(tiny[FAMILIES[request.param]])
    blocks = make_blocks(load_documents("movie-reviews"), tokenizer, 32, whole_words=True)
    rule = MaskRule.of(tokenizer, 0.15)
    data = MaskedBlocks(blocks, rule, 11)
    keys = [(epoch, row) for epoch in range(2) for row in range(len(blocks))]
    return rule, [(blocks[row], data[epoch, row]) for epoch, row in keys[:10_000]]


def test_whole_words_in_10000_blocks(masked: tuple[MaskRule, list[tuple[NDArray[np.uint32], Any]]]) -> None:
    """Each word is selected as a whole or not at all, and 15 % of the tokens are, within four sigma."""
    rule, pairs = masked
    selected = tokens = squares = 0
    after, before = [], []
    for block, found in pairs:
        ids, continues = (block & ~CONTINUES).astype(np.int64), block >= CONTINUES
        special, chosen = np.isin(ids, rule.special_ids), found["labels"] != -100
        assert not (chosen & special).any()
        # Unknown tokens are special; there may be one within a word of SentencePiece.
        words = (~continues).cumsum()
        sizes = np.bincount(words[~special])
        of_word = np.bincount(words[~special], chosen[~special])
        assert ((of_word == 0) | (of_word == sizes)).all()
        assert (found["labels"][chosen] == ids[chosen]).all()
        assert (found["input_ids"][~chosen] == ids[~chosen]).all()
        selected, tokens, squares = selected + chosen.sum(), tokens + (~special).sum(), squares + (sizes**2).sum()
        before.append(ids[chosen])
        after.append(found["input_ids"][chosen])
    assert len(pairs) == 10_000
    assert squares > 1.2 * tokens  # there are words of several tokens
    assert abs(selected - 0.15 * tokens) < 4 * math.sqrt(0.15 * 0.85 * squares)
    old, new = np.concatenate(before), np.concatenate(after)
    for share, kind in ((0.8, new == rule.mask_id), (0.1, (new != old) & (new != rule.mask_id)), (0.1, new == old)):
        assert abs(kind.mean() - share) < 4 * math.sqrt(share * (1 - share) / selected) + 1e-3


def test_shares_of_masked_and_random_tokens(tiny: dict[str, Path], tmp_path: Path) -> None:
    """All masked, none; the rest stays as it is. The selection does not depend on them."""
    tokenizer = AutoTokenizer.from_pretrained(tiny["bert"])
    blocks = make_blocks(documents_of(movie_reviews()[:500], tmp_path), tokenizer, 32)
    found = {}
    for shares in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.25)):
        rule = MaskRule.of(tokenizer, 0.15, *shares)
        masked = [MaskedBlocks(blocks, rule, 3)[0, row] for row in range(len(blocks))]
        ids, labels = (np.concatenate([each[name] for each in masked]) for name in ("input_ids", "labels"))
        chosen = labels != -100
        found[shares] = chosen.tolist(), (ids == rule.mask_id)[chosen].mean(), (ids == labels)[chosen].mean()
    selections = [chosen for chosen, _, _ in found.values()]
    assert all(each == selections[0] for each in selections)
    shares_found = [each[1:] for each in found.values()]
    for (masks, unchanged), expected in zip(shares_found, ((1, 0), (0, 0), (0, 1), (0.5, 0.25)), strict=True):
        assert (masks, unchanged) == pytest.approx(expected, abs=0.04 if 0.5 in expected else 0.002)


def test_words_of_one_token_are_masked_as_tokens(tiny: dict[str, Path], tmp_path: Path) -> None:
    """Where every word is one token, both ways are the same, bit for bit."""
    tokenizer = AutoTokenizer.from_pretrained(tiny["bert"])
    rule = MaskRule.of(tokenizer, 0.15)
    blocks: Blocks = blocks_of([range(10, 40), range(50, 60)], tmp_path)
    plain = MaskedBlocks(blocks, rule, 3)
    for row in range(2):
        generator = np.random.Generator(np.random.Philox([0, 3, 0, row]))
        assert ((generator.random(len(blocks[row])) < 0.15) == (plain[0, row]["labels"] != -100)).all()
