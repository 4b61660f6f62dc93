"""Sentences with masks, and the comparison with the transformers pipeline."""

import random
from typing import Any

import pytest

from mlm_infer.shared.samples import movie_reviews

__all__ = ["NAMES", "assert_same", "masked_sentences"]

NAMES = ["base", "bert", "distilbert", "roberta"]


def masked_sentences(mask: str, count: int, seed: int) -> list[str]:
    """Real sentences with one to three of their words masked."""
    chosen = random.Random(seed)
    texts = []
    for sentence in movie_reviews("validation")[:count]:
        words = sentence.split()[:25]
        for place in chosen.sample(range(len(words)), min(len(words), chosen.choice([1, 1, 2, 3]))):
            words[place] = mask
        texts.append(" ".join(words))
    return texts


def flatten(answer: Any) -> list[dict[str, Any]]:
    """Return the dictionaries of an answer, regardless of nesting."""
    if isinstance(answer, dict):
        return [answer]
    return [each for part in answer for each in flatten(part)]


def shape(answer: Any) -> Any:
    """Return the nesting of an answer and the keys of its dictionaries in order."""
    return list(answer) if isinstance(answer, dict) else [shape(part) for part in answer]


def assert_same(ours: Any, theirs: Any) -> None:
    """Same nesting, keys, order, tokens and strings; scores within 1e-5."""
    assert shape(ours) == shape(theirs)
    for mine, other in zip(flatten(ours), flatten(theirs), strict=True):
        assert {**mine, "score": 0} == {**other, "score": 0}
        assert mine["score"] == pytest.approx(other["score"], abs=1e-5)
