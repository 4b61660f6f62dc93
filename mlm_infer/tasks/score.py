"""`score`: pseudo-log-likelihoods of whole texts, each token predicted from the others."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlm_infer.results import ScoreResult, TokenScore
from mlm_infer.text.encoded_text import WholeText
from mlm_infer.text.encoder import LongText

from .open_model import OpenModel

__all__ = ["ScoreMethod", "score_texts", "whole_texts"]

ScoreMethod = Literal["pll", "pll_word_l2r"]

_TOKENS_AT_ONCE = 1 << 17
"""Texts are collected until their masked copies have this many tokens, which bounds memory."""


def whole_texts(model: OpenModel, texts: Sequence[str], long_text: LongText) -> Iterator[WholeText]:
    """Yield the tokens of each text.

    Raises:
        InputError: A text is invalid.
    """
    for row, text in enumerate(texts):
        yield model.encoder.whole(text, "the text" if len(texts) == 1 else f"text {row} of {len(texts)}", long_text)


def score_texts(model: OpenModel, texts: Iterable[WholeText], *, method: ScoreMethod) -> Iterator[ScoreResult]:
    """Yield the score of each text.

    Args:
        model: The model.
        texts: The tokens of the texts.
        method: `pll` masks one token at a time (Salazar et al. 2020, https://aclanthology.org/2020.acl-main.240);
            `pll_word_l2r` also masks the tokens that follow in the same word, so that a long word is not
            predicted from its own ending (Kauf and Ivanova 2023, https://aclanthology.org/2023.acl-short.80).
    """
    longest, mask_id = model.manifest.max_length, model.manifest.mask_id
    pending: list[tuple[WholeText, list[int]]] = []
    queries: list[_MaskedToken] = []
    held = 0
    for whole in texts:
        scored = list(range(whole.head, len(whole.ids) - whole.tail))
        pending.append((whole, scored))
        queries += [_masked(whole, place, method, longest, mask_id) for place in scored]
        # Every scored token is a copy of the text, or of a window of it.
        held += len(scored) * min(len(whole.ids), longest)
        if held >= _TOKENS_AT_ONCE:
            yield from _score(model, pending, queries)
            pending, queries, held = [], [], 0
    yield from _score(model, pending, queries)


@dataclass(frozen=True, slots=True)
class _MaskedToken:
    """A copy of a text, or of a window of it, in which one token is masked.

    Its ids are computed on demand: stored for every token of a long text, they would take gigabytes.
    """

    whole: WholeText
    place: int
    count: int
    longest: int
    mask_id: int
    positions: tuple[int]

    @property
    def ids(self) -> NDArray[np.int64]:
        ids, index = self.whole.window(self.place, self.longest)
        masked = np.array(ids, np.int64)
        # Never beyond the window's last ordinary token: the special tokens at its end stay visible.
        masked[index : min(index + self.count, len(ids) - self.whole.tail)] = self.mask_id
        return masked


def _masked(whole: WholeText, place: int, method: ScoreMethod, longest: int, mask_id: int) -> _MaskedToken:
    count = 1
    if method == "pll_word_l2r":
        # A text without spaces may be a single word. Tokens beyond the window do not matter.
        following = whole.words[place : place + longest]
        count = sum(1 for _ in itertools.takewhile(lambda word: word == whole.words[place], following))
    return _MaskedToken(whole, place, count, longest, mask_id, (whole.window(place, longest)[1],))


def _score(
    model: OpenModel, pending: list[tuple[WholeText, list[int]]], queries: list[_MaskedToken]
) -> Iterator[ScoreResult]:
    wanted = [[np.array([whole.ids[place]], np.int64)] for whole, places in pending for place in places]
    logprobs = iter(model.predictor.candidates(queries, wanted))
    vocabulary = model.encoder.vocabulary
    for whole, places in pending:
        tokens = []
        for place in places:
            token_id, logprob = whole.ids[place], float(next(logprobs)[0][0])
            unknown = token_id == vocabulary.unknown_id
            tokens.append(TokenScore(vocabulary.token(token_id), token_id, whole.spans[place], logprob, unknown))
        yield ScoreResult(whole.text, tuple(tokens), sum(each.logprob for each in tokens))
