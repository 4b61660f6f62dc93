"""The known-answer test of a bundle: inputs recorded with their answers at the export, replayed where it runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .bundle import MANIFEST, KnownAnswer
from .errors import BundleError, InputError
from .manifest import read_manifest

if TYPE_CHECKING:
    from .filler import FillerInfo, MaskFiller

__all__ = ["check_answers", "record_answers"]

_REVIEW = (
    "It is one of those films that one likes more with every year : the story is slow , the music is quiet , and "
    "nobody in it says a word too much"
)
_TEXTS = (
    "[MASK]",
    "A [MASK] film.",
    "The [MASK] was good, but the [MASK] was far too long.",
    f"{_REVIEW}, and the [MASK] is the best of it.",
    f"{_REVIEW}. " * 3 + "The [MASK] is the best of it.",
)
_TOP_K = 5

_EXACT = 1e-3
_ROUNDED = 0.25
"""Largest difference of a log-probability: of fp32 on a CPU, and of what rounds more."""


def record_answers(folder: Path) -> None:
    """Put known answers into the manifest of a bundle, as this machine gives them.

    Args:
        folder: The bundle.
    """
    from .filler import open_named

    manifest = read_manifest(folder)
    answers = {name: _answers(open_named(folder, name)) for name in manifest.models}
    path = folder / MANIFEST
    scratch = path.with_suffix(".new")
    scratch.write_text(replace(manifest, known_answers=answers).to_json(), encoding="utf-8")
    scratch.replace(path)


def _answers(filler: "MaskFiller") -> tuple[KnownAnswer, ...]:
    top_k = min(_TOP_K, filler.info.vocab_size)
    found = []
    for text in _TEXTS:
        if filler.count_tokens(text) <= filler.info.max_length:
            masks = filler.fill(text, top_k=top_k).masks
            ids = tuple(tuple(each.token_id for each in mask.predictions) for mask in masks)
            logprobs = tuple(tuple(round(each.logprob, 5) for each in mask.predictions) for mask in masks)
            found.append(KnownAnswer(text, ids, logprobs))
    return tuple(found)


def check_answers(
    info: "FillerInfo", answers: Sequence[KnownAnswer], logprobs_of: Callable[[str, list[int]], list[dict[int, float]]]
) -> None:
    """Replay known answers. Log-probabilities of the recorded tokens are compared, since near ties may swap.

    Args:
        info: What is tested.
        answers: What was recorded.
        logprobs_of: Gives for a text and token ids the log-probability of each id at each mask.

    Raises:
        BundleError: There are none, or one does not come out.
    """
    if not answers:
        raise BundleError(f"{info.path} holds no known answers for {info.precision}; export the model again")
    limit = _EXACT if info.precision == "fp32" and "cuda" not in info.provider.lower() else _ROUNDED
    for answer in answers:
        try:
            found = logprobs_of(answer.text, sorted({token for row in answer.ids for token in row}))
        except InputError as error:
            raise BundleError(f"{info.path}: its known answers cannot be replayed: {error}") from error
        if len(found) != len(answer.ids):
            raise BundleError(f"{info.path}: {answer.text!r} has {len(answer.ids)} masks, here {len(found)}")
        for ids, logprobs, here in zip(answer.ids, answer.logprobs, found, strict=True):
            for token, expected in zip(ids, logprobs, strict=True):
                if not abs(here[token] - expected) <= limit:
                    raise BundleError(
                        f"{info.path} ({info.precision}) answers wrong on this machine: token {token} in "
                        f"{answer.text[-50:]!r} must have log-probability {expected:.4f} (within {limit:g}), "
                        f"here it has {here[token]:.4f}"
                    )
