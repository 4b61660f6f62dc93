"""The texts that engines are measured on: review sentences, and random proteins for models of proteins."""

import random
from collections.abc import Callable
from typing import Literal

from mlm_infer import MaskFiller
from mlm_infer.shared.samples import movie_reviews

__all__ = ["bulk_texts", "many_texts", "single_texts"]

_OF_PROTEINS = frozenset({"esm", "esmc"})
_RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
_SHORTEST, _LONGEST, _PROTEINS = 50, 250, 10_000
"""Lengths of the proteins in bulk, in residues, and how many there are: about as many as sentences."""


def bulk_texts(mask: str, count: int | None = None, split: Literal["train", "validation"] = "train") -> list[str]:
    """Return review sentences of a split, with the middle word masked; all of them for None."""
    return [_masked(sentence.split(), mask, " ") for sentence in movie_reviews(split)[:count]]


def many_texts(filler: MaskFiller, split: Literal["train", "validation"] = "train") -> list[str]:
    """Return thousands of texts with one mask each, of the kind that the model reads, in random order.

    Args:
        filler: The model.
        split: The part of the texts.
    """
    # Seeded: every run and every engine gets the same texts.
    generator = random.Random(split)  # noqa: S311
    mask = filler.info.mask_token
    if filler.info.architecture in _OF_PROTEINS:
        lengths = [generator.randint(_SHORTEST, _LONGEST) for _ in range(_PROTEINS)]
        return [_masked(generator.choices(_RESIDUES, k=length), mask, "") for length in lengths]
    texts = bulk_texts(mask, split=split)
    # Neighbours come from the same review.
    generator.shuffle(texts)
    return texts


def single_texts(filler: MaskFiller, length: int, count: int) -> list[str]:
    """Return texts of exactly `length` tokens, special tokens included, of the kind that the model reads.

    Args:
        filler: The model.
        length: Number of tokens.
        count: Number of texts; there may be fewer of a great length.
    """
    mask = filler.info.mask_token
    if filler.info.architecture in _OF_PROTEINS:
        generator = random.Random(length)  # noqa: S311
        residues = length - filler.count_tokens("")
        return [_masked(generator.choices(_RESIDUES, k=residues), mask, "") for _ in range(count)]
    return _of_length(filler.count_tokens, mask, length, count)


def _of_length(count_tokens: Callable[[str], int], mask: str, length: int, count: int) -> list[str]:
    """Return texts of exactly `length` tokens, special tokens included, cut consecutively from the reviews."""
    words = [word for sentence in movie_reviews("validation") for word in sentence.split()]
    texts: list[str] = []
    start = 0
    while len(texts) < count and start + length < len(words):
        # A word is one or more tokens, so words are added until the text has the length. If a word jumps over it, the
        # text is dropped and the next one starts behind it.
        taken = length // 2
        text = ""
        while taken <= length:
            text = _masked(words[start : start + taken], mask, " ")
            if count_tokens(text) >= length:
                break
            taken += 1
        if count_tokens(text) == length:
            texts.append(text)
        start += taken
    return texts


def _masked(words: list[str], mask: str, between: str) -> str:
    """Join words, or residues, with a mask in place of the middle one."""
    words = list(words)
    words[len(words) // 2] = mask
    return between.join(words)
