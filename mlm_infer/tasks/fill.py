"""`fill`, `fill_batch` and `fill_stream`: each mask is predicted independently."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlm_infer.checks import whole_number
from mlm_infer.errors import InputError
from mlm_infer.options import FillOptions
from mlm_infer.results import FillResult, MaskResult, Prediction
from mlm_infer.runtime.best import Answer, best_of
from mlm_infer.text.encoded_text import EncodedText
from mlm_infer.text.encoder import LongText, TextEncoder
from mlm_infer.text.vocabulary import Restriction

from .chunks import chunked
from .open_model import OpenModel

__all__ = [
    "Choice",
    "OnError",
    "Wanted",
    "answer_parts",
    "ask_parts",
    "build_result",
    "check_top_k",
    "encode_texts",
    "fill_stream",
    "fill_texts",
    "wanted_ids",
]

OnError = Literal["raise", "return"]
"""What a stream does with an invalid text."""

Wanted = list[NDArray[np.int64]]
"""The permitted token ids for each mask of a text."""

_STREAM_CHUNK = 512
"""Texts that a stream reads ahead: enough to find neighbours of similar length for full batches."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Options that were validated against a model."""

    restriction: Restriction
    top_k: int
    min_score: float
    renormalize: bool
    long_text: LongText
    most: int
    """Upper bound on the number of predictions per mask."""

    @classmethod
    def of(cls, model: OpenModel, options: FillOptions) -> "Choice":
        """Validate options against a model.

        Raises:
            InputError: An option is invalid for this model.
        """
        restriction, min_score = options.restriction, options.min_score
        most = top_k = check_top_k(model, options.top_k)
        if not restriction.is_none:
            # If no token passes the filter even at the start of a text, where most pass, the arguments are wrong.
            most = min(most, len(model.encoder.vocabulary.permitted(restriction, True)))
        if min_score:
            # Probabilities sum to one, so at most 1/p tokens can have probability p.
            most = int(min(most, 1 / min_score))
        return cls(restriction, top_k, min_score, options.renormalize, options.long_text, most)

    def best(self, ids: NDArray[np.int64], logprobs: NDArray[np.float32]) -> Answer:
        """Return the top-k of the permitted tokens."""
        if self.renormalize:
            # `logprobs` are those of all permitted tokens, so their sum in log space is the mass that they share.
            logprobs = logprobs - np.logaddexp.reduce(logprobs)
        return best_of(ids, logprobs, self.top_k)


def check_top_k(model: OpenModel, top_k: object) -> int:
    """Return `top_k` as an int, or raise InputError if it exceeds the vocabulary."""
    size = model.manifest.vocab_size
    return whole_number("top_k", top_k, least=1, most=size, rest=", the size of the vocabulary")


def fill_texts(model: OpenModel, texts: Sequence[str], choice: Choice) -> list[FillResult]:
    """Fill the masks of texts.

    Raises:
        InputError: A text is invalid.
    """
    found = encode_texts(model, texts, choice)
    wrong = next((each for each in found if isinstance(each, InputError)), None)
    if wrong is not None:
        raise wrong
    return answer_parts(model, [each for each in found if not isinstance(each, InputError)], choice)


def encode_texts(
    model: OpenModel, texts: Sequence[str], choice: Choice, *, first: int | None = None
) -> list[list[EncodedText] | InputError]:
    """Tokenize texts; an invalid text, or one with a mask for which no token is permitted, gives its error.

    Args:
        model: The model.
        texts: The texts.
        choice: The options.
        first: Number of the first text, if these are part of a stream.
    """
    found = model.encoder.try_encode(texts, choice.long_text, copies=choice.most, first=first)
    if choice.restriction.is_none:
        return found
    try:
        # Every token that is permitted inside a text is also permitted at its start, so only the former can be empty.
        model.encoder.vocabulary.permitted(choice.restriction, False)
    except InputError as error:
        return [error if not isinstance(each, InputError) and _has_mask_inside(each) else each for each in found]
    return found


def _has_mask_inside(parts: Sequence[EncodedText]) -> bool:
    return any(span[0] > 0 for part in parts for span in part.spans)


def fill_stream(
    model: OpenModel, texts: Iterator[str], choice: Choice, on_error: OnError
) -> Iterator[FillResult | InputError]:
    """Yield one result per text, reading the iterator in chunks.

    Raises:
        InputError: A text is invalid and `on_error` is `raise`; raised after the results of all earlier texts.
    """
    first = 0
    for chunk, failure in _chunks(texts):
        found = encode_texts(model, chunk, choice, first=first)
        first += len(chunk)
        # Texts before an invalid one are still answered, as they would be if the stream had been read one by one.
        wrong = next((each for each in found if isinstance(each, InputError)), None) if on_error == "raise" else None
        if wrong is not None:
            found = found[: found.index(wrong)]
        good = [each for each in found if not isinstance(each, InputError)]
        results = iter(answer_parts(model, good, choice))
        for each in found:
            yield each if isinstance(each, InputError) else next(results)
        error = wrong or failure
        if error is not None:
            raise error


def _chunks(texts: Iterator[str]) -> Iterator[tuple[list[str], Exception | None]]:
    """Yield lists of texts; if the iterator fails, first the texts before the failure and then its exception."""
    failure: Exception | None = None

    def until_failure() -> Iterator[str]:
        nonlocal failure
        try:
            yield from texts
        except Exception as error:  # a user's iterator may raise anything; it is raised again after the results
            failure = error

    # A value that is not a string gets its own error later.
    for chunk in chunked(until_failure(), _STREAM_CHUNK, lambda text: len(text) if isinstance(text, str) else 0):
        yield chunk, None
    if failure is not None:
        yield [], failure


def answer_parts(model: OpenModel, texts: Sequence[Sequence[EncodedText]], choice: Choice) -> list[FillResult]:
    """Run the model on the parts of each text and return one result per text."""
    parts = [part for text in texts for part in text]
    answers = iter(ask_parts(model, parts, wanted_ids(model, parts, choice), choice))
    return [build_result(model, text, [next(answers) for _ in text], choice) for text in texts]


def wanted_ids(model: OpenModel, parts: Sequence[EncodedText], choice: Choice) -> list[Wanted] | None:
    """Return the permitted tokens for each part and each of its masks; None if all are permitted."""
    if choice.restriction.is_none:
        return None
    permitted = model.encoder.vocabulary.permitted
    return [[permitted(choice.restriction, span[0] == 0) for span in part.spans] for part in parts]


def ask_parts(
    model: OpenModel, parts: Sequence[EncodedText], wanted: Sequence[Wanted] | None, choice: Choice
) -> list[list[Answer]]:
    """Run the model and return the top-k tokens for each part and mask."""
    if wanted is None:
        return model.predictor.top(parts, choice.top_k)
    found = model.predictor.candidates(parts, wanted)
    return [list(map(choice.best, ids, logprobs)) for ids, logprobs in zip(wanted, found, strict=True)]


def build_result(
    model: OpenModel, parts: Sequence[EncodedText], answers: Sequence[Sequence[Answer]], choice: Choice
) -> FillResult:
    """Return the result of one text from the answers for its parts."""
    masks = [_masks(model.encoder, part, best, choice.min_score) for part, best in zip(parts, answers, strict=True)]
    return FillResult(parts[0].text, tuple(mask for each in masks for mask in each))


def _masks(
    encoder: TextEncoder, part: EncodedText, answers: Sequence[Answer], min_score: float
) -> Iterator[MaskResult]:
    for position, span, (ids, logprobs) in zip(part.positions, part.spans, answers, strict=True):
        predictions = tuple(
            _prediction(encoder, part.text, span, token_id, logprob)
            for token_id, logprob in zip(ids.tolist(), logprobs.tolist(), strict=True)
            if math.exp(logprob) >= min_score
        )
        # Positions refer to the whole text, not to the window that the model saw.
        yield MaskResult(position + part.skipped, span, predictions, part.window)


def _prediction(encoder: TextEncoder, text: str, span: tuple[int, int], token_id: int, logprob: float) -> Prediction:
    token = encoder.vocabulary.token(token_id)
    return Prediction(
        token=token,
        token_id=token_id,
        text=encoder.text_of([token_id]),
        starts_word=encoder.vocabulary.starts_word(token),
        score=math.exp(logprob),
        logprob=logprob,
        sequence=encoder.splice(text, [(span, [token_id])]),
    )
