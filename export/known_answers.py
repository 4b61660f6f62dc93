"""The known answers of a bundle: a few inputs, recorded with what this machine answers."""

from dataclasses import replace
from pathlib import Path

from mlm_infer import MaskFiller
from mlm_infer.bundle.manifest import MANIFEST, KnownAnswer
from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.filler import open_named

__all__ = ["record_answers"]

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


def record_answers(folder: Path) -> None:
    """Put known answers into the manifest of a bundle, as this machine gives them.

    Args:
        folder: The bundle.
    """
    manifest = read_manifest(folder)
    answers = {name: _answers(open_named(folder, name)) for name in manifest.models}
    path = folder / MANIFEST
    scratch = path.with_suffix(".new")
    scratch.write_text(replace(manifest, known_answers=answers).to_json(), encoding="utf-8")
    scratch.replace(path)


def _answers(filler: MaskFiller) -> tuple[KnownAnswer, ...]:
    top_k = min(_TOP_K, filler.info.vocab_size)
    found = []
    for text in _TEXTS:
        if filler.count_tokens(text) <= filler.info.max_length:
            masks = filler.fill(text, top_k=top_k).masks
            ids = tuple(tuple(each.token_id for each in mask.predictions) for mask in masks)
            logprobs = tuple(tuple(round(each.logprob, 5) for each in mask.predictions) for mask in masks)
            found.append(KnownAnswer(text, ids, logprobs))
    return tuple(found)
