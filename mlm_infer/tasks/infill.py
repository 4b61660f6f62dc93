"""`infill`: fills several masks jointly, with spans of unknown length, by beam search."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlm_infer.checks import check_copies, shown
from mlm_infer.errors import InputError
from mlm_infer.results import Infilling
from mlm_infer.runtime.best import Answer, best_of
from mlm_infer.runtime.predictor import Predictor, Query
from mlm_infer.text.encoded_text import EncodedText
from mlm_infer.text.encoder import TextEncoder
from mlm_infer.text.vocabulary import Restriction

from .open_model import OpenModel

__all__ = ["Order", "expand_spans", "infill_text"]

Order = Literal["confidence", "left_to_right"]

_SPAN = re.compile(r"\[MASK:([^\]]*)\]|<mask:([^>]*)>")
_LONGEST_SPAN = 16
_MOST_LENGTHS = 64
"""Maximum number of combinations of span lengths, each of which takes a search of its own."""
_LOGPROBS_AT_ONCE = 1 << 24
"""Log-probabilities of permitted tokens that are held at a time; a wide beam with many masks would need gigabytes."""


@dataclass(frozen=True, slots=True)
class _State:
    """A partially filled text: ids, indices that are still masked, and the log-probability so far."""

    ids: tuple[int, ...]
    left: tuple[int, ...]
    logprob: float


def expand_spans(text: str, mask: str) -> list[tuple[str, list[tuple[int, int]], list[int]]]:
    """Expand spans such as `[MASK:1-4]` to plain masks, for every combination of lengths.

    Args:
        text: A text with masks and spans.
        mask: The model's mask token.

    Returns:
        For each combination: the text with plain masks, the position of each mask or span in the user's text, and the
        number of masks that each became.

    Raises:
        InputError: A span is malformed, or there are too many combinations.
    """
    pattern = re.compile(f"{_SPAN.pattern}|\\[MASK\\]|<mask>|{re.escape(mask)}")
    matches = list(pattern.finditer(text))
    lengths = [_lengths(match) for match in matches]
    combinations = list(itertools.islice(itertools.product(*lengths), _MOST_LENGTHS + 1))
    if len(combinations) > _MOST_LENGTHS:
        raise InputError(f"the spans of the text have more than {_MOST_LENGTHS} combinations of lengths; narrow them")
    expanded = []
    for counts in combinations:
        plain, end = "", 0
        for match, count in zip(matches, counts, strict=True):
            plain += text[end : match.start()] + " ".join([mask] * count)
            end = match.end()
        expanded.append((plain + text[end:], [match.span() for match in matches], list(counts)))
    return expanded


def _lengths(match: re.Match[str]) -> Sequence[int]:
    written = next((group for group in match.groups() if group is not None), None)
    if written is None:
        return [1]
    found = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", written.strip())
    first = int(found[1]) if found else 0
    last = int(found[2] or first) if found else 0
    if not 1 <= first <= last <= _LONGEST_SPAN:
        raise InputError(
            f"the span {shown(match[0])} is malformed; write [MASK:2] or [MASK:1-4], with lengths from 1 to "
            f"{_LONGEST_SPAN}"
        )
    return range(first, last + 1)


def infill_text(
    model: OpenModel,
    text: str,
    parts: Sequence[tuple[EncodedText, list[tuple[int, int]], list[int]]],
    *,
    top_k: int,
    beam_size: int,
    order: Order,
    restriction: Restriction,
) -> list[Infilling]:
    """Search for the best joint fillings of all masks; see `MaskFiller.infill`.

    Args:
        model: The model.
        text: The input text.
        parts: The text at each combination of lengths, with the spans in the user's text and their lengths.
        top_k: Maximum number of fillings to return.
        beam_size: Number of partial fillings to keep for each combination of lengths.
        order: Which mask to fill next.
        restriction: The filter on predicted tokens.
    """
    encoder = model.encoder
    found: list[Infilling] = []
    # Log-probabilities decrease with every token, so fillings of different lengths are compared by their mean.
    for encoded, spans, counts in parts:
        permitted = None if restriction.is_none else _permitted(encoder, encoded, restriction)
        # With a single mask the beam is the result, so it must be as wide as `top_k`.
        width = max(beam_size, top_k if len(encoded.positions) == 1 else 1)
        states = _search(model.predictor, encoded, width, order, permitted)
        check_copies("the text", text, len(found) + len(states))
        for state in states:
            tokens = iter([state.ids[position] for position in encoded.positions])
            groups = [[next(tokens) for _ in range(count)] for count in counts]
            found.append(
                Infilling(
                    sequence=encoder.splice(text, list(zip(spans, groups, strict=True))),
                    fillings=tuple(map(encoder.text_of, groups)),
                    tokens=tuple(tuple(map(encoder.vocabulary.token, group)) for group in groups),
                    logprob=state.logprob,
                    score=state.logprob / len(encoded.positions),
                )
            )
    best: dict[tuple[tuple[str, ...], ...], Infilling] = {}
    for each in sorted(found, key=lambda each: -each.score):
        best.setdefault(each.tokens, each)
    return list(best.values())[:top_k]


def _permitted(encoder: TextEncoder, text: EncodedText, restriction: Restriction) -> dict[int, NDArray[np.int64]]:
    return {
        position: encoder.vocabulary.permitted(restriction, begins_text=span[0] == 0)
        for position, span in zip(text.positions, text.spans, strict=True)
    }


def _search(
    predictor: Predictor,
    text: EncodedText,
    width: int,
    order: Order,
    permitted: dict[int, NDArray[np.int64]] | None,
) -> list[_State]:
    """Beam search: fill one mask of every state per step and keep the best states; a width of one is greedy."""
    # All states are queried in one call, which batches them. The first step has a single state, the masked text.
    states = [_State(tuple(text.ids), text.positions, 0.0)]
    for _ in text.positions:
        asked = [Query(state.ids, state.left if order == "confidence" else state.left[:1]) for state in states]
        following: dict[tuple[int, ...], _State] = {}
        for state, query, answer in zip(states, asked, _best(predictor, asked, width, permitted), strict=True):
            # With `left_to_right` there is one candidate; otherwise the mask with the most probable token is filled.
            place = max(range(len(query.positions)), key=lambda slot: float(answer[slot][1][0]))
            position = query.positions[place]
            for token_id, logprob in zip(*(each.tolist() for each in answer[place]), strict=True):
                ids = (*state.ids[:position], token_id, *state.ids[position + 1 :])
                new = _State(ids, tuple(each for each in state.left if each != position), state.logprob + logprob)
                # Different orders of filling can reach the same text.
                if ids not in following or following[ids].logprob < new.logprob:
                    following[ids] = new
        states = sorted(following.values(), key=lambda state: -state.logprob)[:width]
    return states


def _best(
    predictor: Predictor, queries: Sequence[Query], width: int, permitted: dict[int, NDArray[np.int64]] | None
) -> list[list[Answer]]:
    """Return the top permitted tokens for each query and mask."""
    if permitted is None:
        return predictor.top(queries, width)
    candidates = [[permitted[position] for position in query.positions] for query in queries]
    at_once = max(1, _LOGPROBS_AT_ONCE // sum(map(len, candidates[0])))
    best: list[list[Answer]] = []
    for start in range(0, len(queries), at_once):
        part = candidates[start : start + at_once]
        found = predictor.candidates(queries[start : start + at_once], part)
        best += [
            [best_of(ids, logprobs, width) for ids, logprobs in zip(*pair, strict=True)]
            for pair in zip(part, found, strict=True)
        ]
    return best
