"""Each mask on its own: the answers of `fill`, of batches and of streams."""

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
from mlm_infer.text.encoder import EncodedText, LongText, TextEncoder
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
"""What a stream does with a text that is wrong."""

Wanted = list[NDArray[np.int64]]
"""For each mask of a text the ids to choose among."""

_STREAM_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Choice:
    """What a model is asked for: options that fit it."""

    restriction: Restriction
    top_k: int
    min_score: float
    renormalize: bool
    long_text: LongText
    most: int
    """Most predictions of a mask that there can be."""

    @classmethod
    def of(cls, model: OpenModel, options: FillOptions) -> "Choice":
        """Hold options against a model.

        Raises:
            InputError: One does not fit it.
        """
        restriction, min_score = options.restriction, options.min_score
        most = top_k = check_top_k(model, options.top_k)
        if not restriction.is_none:
            # A restriction that nothing passes, even where most does, is an error of the arguments.
            most = min(most, len(model.encoder.vocabulary.permitted(restriction, True)))
        if min_score:
            most = int(min(most, 1 / min_score))
        return cls(restriction, top_k, min_score, options.renormalize, options.long_text, most)

    def best(self, ids: NDArray[np.int64], logprobs: NDArray[np.float32]) -> Answer:
        """Return the best of what may be given."""
        if self.renormalize:
            logprobs = logprobs - np.logaddexp.reduce(logprobs)
        return best_of(ids, logprobs, self.top_k)


def check_top_k(model: OpenModel, top_k: object) -> int:
    """Return a number of tokens that the vocabulary has, or raise InputError."""
    size = model.manifest.vocab_size
    return whole_number("top_k", top_k, least=1, most=size, rest=", the size of the vocabulary")


def fill_texts(model: OpenModel, texts: Sequence[str], choice: Choice) -> list[FillResult]:
    """Fill the masks of texts.

    Raises:
        InputError: A text cannot be used.
    """
    found = encode_texts(model, texts, choice)
    wrong = next((each for each in found if isinstance(each, InputError)), None)
    if wrong is not None:
        raise wrong
    return answer_parts(model, [each for each in found if not isinstance(each, InputError)], choice)


def encode_texts(
    model: OpenModel, texts: Sequence[str], choice: Choice, *, first: int | None = None
) -> list[list[EncodedText] | InputError]:
    """Tokenize texts, with the error of one that cannot be used, or that has a mask for which no token is left.

    Args:
        model: The model.
        texts: The texts.
        choice: What is asked of them.
        first: Number of the first text, where these are a part of a stream.
    """
    found = model.encoder.try_encode(texts, choice.long_text, copies=choice.most, first=first)
    if choice.restriction.is_none:
        return found
    try:
        # What may stand inside a text may begin one as well.
        model.encoder.vocabulary.permitted(choice.restriction, False)
    except InputError as error:
        return [error if not isinstance(each, InputError) and _has_mask_inside(each) else each for each in found]
    return found


def _has_mask_inside(parts: Sequence[EncodedText]) -> bool:
    return any(span[0] > 0 for part in parts for span in part.spans)


def fill_stream(
    model: OpenModel, texts: Iterator[str], choice: Choice, on_error: OnError
) -> Iterator[FillResult | InputError]:
    """Yield a result a text, taking a chunk at a time.

    Raises:
        InputError: A text cannot be used, with `on_error="raise"`; after the results of those before it.
    """
    first = 0
    for chunk, failure in _chunks(texts):
        found = encode_texts(model, chunk, choice, first=first)
        first += len(chunk)
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
    """Yield lists of texts; where the iterator fails, what came before it and then its error."""
    failure: Exception | None = None

    def until_failure() -> Iterator[str]:
        nonlocal failure
        try:
            yield from texts
        except Exception as error:  # whatever a user's iterator raises goes back to the user
            failure = error

    # What is no string is an error of its own, later on.
    for chunk in chunked(until_failure(), _STREAM_CHUNK, lambda text: len(text) if isinstance(text, str) else 0):
        yield chunk, None
    if failure is not None:
        yield [], failure


def answer_parts(model: OpenModel, texts: Sequence[Sequence[EncodedText]], choice: Choice) -> list[FillResult]:
    """Ask about the parts of each text, as `TextEncoder.encode` gives them; return one result a text."""
    parts = [part for text in texts for part in text]
    answers = iter(ask_parts(model, parts, wanted_ids(model, parts, choice), choice))
    return [build_result(model, text, [next(answers) for _ in text], choice) for text in texts]


def wanted_ids(model: OpenModel, parts: Sequence[EncodedText], choice: Choice) -> list[Wanted] | None:
    """Return for each part and each of its masks the tokens that may be given; None where all may."""
    if choice.restriction.is_none:
        return None
    permitted = model.encoder.vocabulary.permitted
    return [[permitted(choice.restriction, span[0] == 0) for span in part.spans] for part in parts]


def ask_parts(
    model: OpenModel, parts: Sequence[EncodedText], wanted: Sequence[Wanted] | None, choice: Choice
) -> list[list[Answer]]:
    """Run the model; return for each part and mask the best tokens."""
    if wanted is None:
        return model.predictor.top(parts, choice.top_k)
    found = model.predictor.candidates(parts, wanted)
    return [list(map(choice.best, ids, logprobs)) for ids, logprobs in zip(wanted, found, strict=True)]


def build_result(
    model: OpenModel, parts: Sequence[EncodedText], answers: Sequence[Sequence[Answer]], choice: Choice
) -> FillResult:
    """Return the result of one text from the answers to its parts."""
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
