"""Batches of real text with masks: what calibration runs on and parity is measured on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from mlm_infer.checkpoint import special_ends

__all__ = ["Batch", "feeds", "mask_texts", "sentence_batches", "shape_batches"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts with masks, as the model takes them.

    Attributes:
        input_ids: [batch, length], padded on the right.
        attention_mask: 1 for a token, 0 for padding, [batch, length].
        positions: Masks of each text as flat indices into batch * length, the first repeated, [batch, slots].
        rows: Which of batch * slots are masks, in the order of the text, [masks].
        answers: The ids that the masks stand for, [masks].
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    positions: NDArray[np.int64]
    rows: NDArray[np.int64]
    answers: NDArray[np.int64]

    @property
    def flat(self) -> NDArray[np.int64]:
        """The masks as flat indices into batch * length."""
        return self.positions.reshape(-1)[self.rows]


def feeds(batch: Batch, inputs: Sequence[str], *, top_k: int = 5) -> dict[str, NDArray[np.int64]]:
    """Return what the serving graph takes: the k best tokens, and the answers as candidates."""
    arrays = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "token_type_ids": np.zeros_like(batch.input_ids),
    }
    return {name: arrays[name] for name in inputs} | {
        "mask_positions": batch.positions,
        "mask_rows": batch.rows,
        "k": np.array([top_k]),
        "candidates": batch.answers[:, None],
    }


def mask_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[int]], random: np.random.Generator, *, share: float
) -> Batch:
    """Mask one token of each text, and each other one with a probability of `share`.

    Args:
        tokenizer: Adds the special tokens, which are never masked.
        texts: Token ids without them.
        random: Chooses.
        share: From 0 to 1.
    """
    begin, end = special_ends(tokenizer)
    whole = [[*begin, *text, *end] for text in texts]
    length = max(map(len, whole))
    ids = np.full((len(whole), length), tokenizer.pad_token_id, np.int64)
    attention = np.zeros_like(ids)
    chosen = np.zeros(ids.shape, bool)
    special = list(tokenizer.all_special_ids)
    for row, tokens in enumerate(whole):
        ids[row, : len(tokens)] = tokens
        attention[row, : len(tokens)] = 1
        free = np.flatnonzero(~np.isin(tokens, special))
        if len(free):
            chosen[row, free[random.random(len(free)) < share]] = True
            chosen[row, random.choice(free)] = True
        else:
            chosen[row, len(tokens) // 2] = True
    answers = ids[chosen]
    ids[chosen] = tokenizer.mask_token_id
    counts = chosen.sum(axis=1)
    slots = int(counts.max())
    positions = (
        np.stack([np.resize(np.flatnonzero(row), slots) for row in chosen]) + np.arange(len(whole))[:, None] * length
    )
    rows = np.flatnonzero(np.arange(slots) < counts[:, None])
    return Batch(ids, attention, positions, rows, answers)


def sentence_batches(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], room: int, *, share: float, size: int = 20
) -> list[Batch]:
    """Return sentences in batches of like length, each with at least one mask.

    Args:
        tokenizer: The model's tokenizer.
        sentences: The text; what is longer than the model takes is cut.
        room: Most tokens a text, without the special ones.
        share: Of the other tokens to mask as well.
        size: Sentences a batch.
    """
    encoded = _token_ids(tokenizer, sentences)
    order = sorted((ids[:room] for ids in encoded if ids), key=len)
    random = np.random.default_rng(0)
    return [mask_texts(tokenizer, order[at : at + size], random, share=share) for at in range(0, len(order), size)]


def shape_batches(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], longest: int
) -> Iterator[tuple[str, Batch]]:
    """Yield batches of several lengths and sizes filled with text, up to the longest that the model takes.

    Args:
        tokenizer: The model's tokenizer.
        sentences: The text.
        longest: Most tokens a text, special ones included.
    """
    encoded = _token_ids(tokenizer, sentences)
    stream = cycle(chain.from_iterable(encoded))
    random = np.random.default_rng(0)
    special = tokenizer.num_special_tokens_to_add()
    for shape in ([8], [5, 17, 32], [16] * 8, [128, 90, 61, 7], [longest]):
        texts = [[next(stream) for _ in range(max(1, min(length, longest) - special))] for length in shape]
        batch = mask_texts(tokenizer, texts, random, share=0.15)
        yield f"{len(shape)} x {batch.input_ids.shape[1]}", batch


def _token_ids(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[list[int]]:
    """Tokenize; a vocabulary that knows less than half of it, such as one of residues, has its own tokens drawn."""
    encoded: list[list[int]] = tokenizer(list(sentences), add_special_tokens=False, verbose=False)["input_ids"]
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in encoded)
    if 2 * unknown <= sum(map(len, encoded)):
        return encoded
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    random = np.random.default_rng(0)
    return [random.choice(ordinary, len(ids)).tolist() for ids in encoded]
