"""`rank`: compares candidates of any number of tokens by their joint log-probability."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mlm_infer.checks import check_copies, shown
from mlm_infer.errors import InputError
from mlm_infer.results import Candidate, RankResult
from mlm_infer.runtime.predictor import Predictor, Query
from mlm_infer.text.encoded_text import EncodedText
from mlm_infer.text.encoder import TextEncoder
from mlm_infer.text.vocabulary import check_word

from .open_model import OpenModel

__all__ = ["Others", "candidate_lists", "rank_candidates"]

Others = Literal["left_to_right", "masked", "visible"]
"""Which other tokens of a candidate are visible when one of its tokens is scored."""


def candidate_lists(candidates: object, masks: int) -> list[Sequence[str]]:
    """Return one list of candidates per mask, from what a user gives.

    Raises:
        InputError: It is no list of words, or there are lists for another number of masks.
    """
    if isinstance(candidates, str) or not isinstance(candidates, Sequence) or not candidates:
        raise InputError(f"candidates is {shown(candidates)}; give a list of words or phrases")
    if all(isinstance(each, str) for each in candidates):
        candidates = [candidates]
    for each in candidates:
        if isinstance(each, str) or not isinstance(each, Sequence) or not each:
            raise InputError(f"candidates holds {shown(each)}; give a list of words or phrases, or one for each mask")
    if len(candidates) != masks:
        raise InputError(
            f"the text has {masks} masks, there are candidates for {len(candidates)}; give a list for each"
        )
    return list(candidates)


def rank_candidates(
    model: OpenModel,
    text: EncodedText,
    candidates: Sequence[Sequence[str]],
    *,
    others: Others,
    normalize: bool,
) -> RankResult:
    """Rank the candidates of each mask; see `MaskFiller.rank`.

    Queries that candidates share run once: the first tokens of all candidates of a length need one row, and the second
    tokens of all candidates with the same first token need one row.

    Raises:
        InputError: A candidate has no tokens, contains unknown text, or makes the text too long.
    """
    encoder, longest, mask_id = model.encoder, model.manifest.max_length, model.manifest.mask_id
    check_copies("the text", text.text, sum(map(len, candidates)))
    answers = []
    for number, words in enumerate(candidates):
        pieces = [_pieces(encoder, text, number, word) for word in words]
        # The candidate replaces one mask token.
        room = longest - len(text.ids) + 1
        for word, ids in zip(words, pieces, strict=True):
            if len(ids) > room:
                raise InputError(
                    f"the candidate {shown(word)} has {len(ids)} tokens, the text leaves room for {room} "
                    f"(this model takes at most {longest} in all)"
                )
        logprobs = _logprobs(model.predictor, text, number, pieces, others, mask_id)
        ranked = []
        for word, ids in zip(words, pieces, strict=True):
            found = tuple(logprobs[question] for question in _questions(tuple(ids), others, mask_id))
            total = sum(found)
            # With `left_to_right`, the sum is the log-probability of the whole candidate, by the chain rule.
            ranked.append(
                Candidate(
                    text=word,
                    tokens=tuple(map(encoder.vocabulary.token, ids)),
                    logprobs=found,
                    logprob=total,
                    score=total / len(found) if normalize else total,
                    sequence=text.text[: text.spans[number][0]] + word.strip() + text.text[text.spans[number][1] :],
                )
            )
        # `sorted` is stable: candidates with equal scores keep the user's order.
        answers.append(tuple(sorted(ranked, key=lambda each: -each.score)))
    return RankResult(text.text, tuple(answers))


Question = tuple[tuple[int, ...], int, int]
"""A candidate's tokens, some of them masked; the index of the queried one; and the token to look up there."""


def _questions(ids: tuple[int, ...], others: Others, mask_id: int) -> list[Question]:
    """Return the queries that score a candidate, one per token."""
    masks = (mask_id,) * len(ids)
    seen = {
        "masked": lambda _place: masks,
        "left_to_right": lambda place: ids[:place] + masks[place:],
        "visible": lambda place: (*ids[:place], mask_id, *ids[place + 1 :]),
    }[others]
    return [(seen(place), place, token) for place, token in enumerate(ids)]


def _logprobs(
    predictor: Predictor, text: EncodedText, number: int, pieces: Sequence[Sequence[int]], others: Others, mask_id: int
) -> dict[Question, float]:
    """Run each distinct query once."""
    # Context, then index in it, then tokens: a context is one text for the model, and each index in it is one row.
    asked: dict[tuple[int, ...], dict[int, dict[int, None]]] = {}
    for ids in pieces:
        for context, place, token in _questions(tuple(ids), others, mask_id):
            asked.setdefault(context, {}).setdefault(place, {})[token] = None
    position = text.positions[number]
    queries = [
        Query([*text.ids[:position], *context, *text.ids[position + 1 :]], [position + place for place in places])
        for context, places in asked.items()
    ]
    wanted = [[np.array(list(tokens), np.int64) for tokens in places.values()] for places in asked.values()]
    found: dict[Question, float] = {}
    for (context, places), answers in zip(asked.items(), predictor.candidates(queries, wanted), strict=True):
        for (place, tokens), logprobs in zip(places.items(), answers, strict=True):
            found |= {(context, place, token): value for token, value in zip(tokens, logprobs.tolist(), strict=True)}
    return found


def _pieces(encoder: TextEncoder, text: EncodedText, number: int, word: object) -> list[int]:
    word = check_word("candidate", word, "a word or phrase")
    # A candidate at the start of a text, or right after a letter, has no space before it.
    start = text.spans[number][0]
    ids = encoder.pieces(word, begins_word=start > 0 and text.text[start - 1].isspace())
    if not ids:
        raise InputError(f"the candidate {shown(word)} holds nothing that is a token of this model")
    encoder.vocabulary.check_known("candidate", word, ids)
    return ids
