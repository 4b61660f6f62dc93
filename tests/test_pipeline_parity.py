"""`filler(...)` against the transformers pipeline itself, on real sentences with one to three masks."""

import random
from pathlib import Path
from typing import Any

import pytest

from mlm_infer import InputError, MaskFiller
from mlm_infer.samples import movie_reviews

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
    """The dictionaries of an answer, however it is nested."""
    if isinstance(answer, dict):
        return [answer]
    return [each for part in answer for each in flatten(part)]


def shape(answer: Any) -> Any:
    """The nesting of an answer and the keys of its dictionaries in their order."""
    return list(answer) if isinstance(answer, dict) else [shape(part) for part in answer]


def assert_same(ours: Any, theirs: Any) -> None:
    """Same nesting, keys, order, tokens and strings; scores within 1e-5."""
    assert shape(ours) == shape(theirs)
    for mine, other in zip(flatten(ours), flatten(theirs), strict=True):
        assert {**mine, "score": 0} == {**other, "score": 0}
        assert mine["score"] == pytest.approx(other["score"], abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_pipelines(
    name: str, checkpoints: dict[str, Path], bundles: dict[str, Path], offline_pipeline: Any
) -> None:
    """Three hundred sentences with the real model, a hundred with each tiny one, alone and in a batch."""
    pipe = offline_pipeline(checkpoints[name])
    filler = MaskFiller(bundles[name], precision="fp32")
    texts = masked_sentences(pipe.tokenizer.mask_token, 300 if name == "base" else 100, seed=1)
    theirs = pipe(texts)
    assert_same(filler(texts), theirs)
    for text, expected in zip(texts[:40], theirs[:40], strict=True):
        assert_same(filler(text), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("top_k", [1, 3, 50])
def test_top_k(
    name: str, top_k: int, checkpoints: dict[str, Path], bundles: dict[str, Path], offline_pipeline: Any
) -> None:
    """Every number of predictions."""
    pipe = offline_pipeline(checkpoints[name])
    text = f"A {pipe.tokenizer.mask_token} film, and a {pipe.tokenizer.mask_token} one."
    assert_same(MaskFiller(bundles[name], precision="fp32")(text, top_k=top_k), pipe(text, top_k=top_k))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "targets", ["film", ["film", "movie", "film"], ["the", "unfathomablest"], [" film", "a", "of", "to", "in", "it"]]
)
def test_targets(
    name: str, targets: Any, checkpoints: dict[str, Path], bundles: dict[str, Path], offline_pipeline: Any
) -> None:
    """One target, duplicates, words that are no token, and more targets than top_k."""
    pipe = offline_pipeline(checkpoints[name])
    text = f"This is a great {pipe.tokenizer.mask_token} with no {pipe.tokenizer.mask_token}."
    assert_same(MaskFiller(bundles[name], precision="fp32")(text, targets=targets), pipe(text, targets=targets))


def test_list_of_one_is_unwrapped(base: Path, bundles: dict[str, Path], offline_pipeline: Any) -> None:
    """A list of one text is answered as that text, as the pipeline does."""
    text = ["This is a great [MASK]."]
    assert_same(MaskFiller(bundles["base"], precision="fp32")(text), offline_pipeline(base)(text))


@pytest.mark.parametrize("targets", [[], ["", ""]])
def test_no_target_left(targets: list[str], base: Path, bundles: dict[str, Path], offline_pipeline: Any) -> None:
    """No usable target is a ValueError here and there."""
    with pytest.raises(ValueError, match="At least one target"):
        offline_pipeline(base)("A [MASK].", targets=targets)
    with pytest.raises(InputError, match="At least one target"):
        MaskFiller(bundles["base"])("A [MASK].", targets=targets)
