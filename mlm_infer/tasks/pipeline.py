"""`MaskFiller.__call__`: the output of the transformers pipeline, in its format."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlm_infer.runtime.best import Answer, best_of
from mlm_infer.text.encoded_text import EncodedText
from mlm_infer.text.encoder import TextEncoder

from .open_model import OpenModel

__all__ = ["answer_as_pipeline"]

logger = logging.getLogger(__name__)


def answer_as_pipeline(
    model: OpenModel, texts: Sequence[str], top_k: int, targets: str | Sequence[str] | None
) -> list[Any]:
    """Return the transformers pipeline's output for each text; see `MaskFiller.__call__`.

    Raises:
        InputError: A text or a target is invalid.
    """
    encoder, predictor, pad_id = model.encoder, model.predictor, model.manifest.pad_id
    candidates = None
    if targets is not None:
        ids, replaced = encoder.vocabulary.first_pieces([targets] if isinstance(targets, str) else targets)
        for target, piece in replaced.items():
            action = "it is left out" if piece is None else f"its first piece {piece!r} is taken"
            logger.warning("the target %r is no token of this model: %s", target, action)
        candidates = np.array(ids, np.int64)
    encoded = encoder.encode(texts)
    if candidates is None:
        answers = predictor.top(encoded, top_k)
    else:
        found = predictor.candidates(encoded, [[candidates] * len(text.positions) for text in encoded])
        answers = [[best_of(candidates, logprobs, top_k) for logprobs in rows] for rows in found]
    return [_as_pipeline(encoder, text, answer, pad_id) for text, answer in zip(encoded, answers, strict=True)]


def _as_pipeline(encoder: TextEncoder, text: EncodedText, answers: Sequence[Answer], pad_id: int) -> list[Any]:
    single = len(text.positions) == 1
    rows = []
    for position, (ids, logprobs) in zip(text.positions, answers, strict=True):
        row = []
        for token_id, score in zip(ids.tolist(), np.exp(logprobs).tolist(), strict=True):
            tokens = [*text.ids[:position], token_id, *text.ids[position + 1 :]]
            # The pipeline removes padding from its batches, and so a predicted padding token as well.
            tokens = [token for token in tokens if token != pad_id]
            row.append(
                {
                    "score": score,
                    "token": token_id,
                    "token_str": encoder.decode([token_id], skip_special_tokens=False),
                    # The pipeline keeps special tokens if there are several masks, so that the others stay visible.
                    "sequence": encoder.decode(tokens, skip_special_tokens=single),
                }
            )
        rows.append(row)
    return rows[0] if single else rows
