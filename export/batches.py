"""Batches of real text with masks, for calibration and parity."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from mlm_infer.shared.checkpoint import special_ends

__all__ = ["Batch", "feeds", "mask_texts", "padded", "shape_batches", "text_batches", "token_ids"]


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of tokenized texts with masks.

    Attributes:
        input_ids: [batch, length], padded on the right.
        attention_mask: 1 for a token, 0 for padding, [batch, length].
        positions: Masks of each text as flat indices into batch * length, repeated to fill the row, [batch, slots].
        rows: Which of batch * slots are masks, in the order of the text, [masks].
        answers: The original ids at the masks, [masks].
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    positions: NDArray[np.int64]
    rows: NDArray[np.int64]
    answers: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        chosen: NDArray[np.bool_],
        answers: NDArray[np.int64],
    ) -> "Batch":
        """Return a batch of texts in which the chosen tokens are masks, at least one per text."""
        counts = chosen.sum(axis=1)
        slots = int(counts.max())
        starts = np.arange(len(chosen))[:, None] * chosen.shape[1]
        # Rectangular, although texts differ in their number of masks: `np.resize` repeats those of a text.
        positions = np.stack([np.resize(np.flatnonzero(row), slots) for row in chosen]) + starts
        rows = np.flatnonzero(np.arange(slots) < counts[:, None])
        return cls(input_ids, attention_mask, positions, rows, answers)

    @property
    def flat(self) -> NDArray[np.int64]:
        """The masks as flat indices into batch * length."""
        return self.positions.reshape(-1)[self.rows]


def feeds(batch: Batch, inputs: Sequence[str], *, top_k: int = 5) -> dict[str, NDArray[np.int64]]:
    """Return the inputs of the serving graph, with the original tokens as candidates."""
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
    """Mask one token of each text, and every other token with probability `share`.

    Args:
        tokenizer: Adds the special tokens, which are never masked.
        texts: Token ids without special tokens.
        random: The random generator.
        share: Probability, from 0 to 1.
    """
    ids, attention, _ = padded(tokenizer, texts)
    chosen = np.zeros(ids.shape, bool)
    special = list(tokenizer.all_special_ids)
    for row, length in enumerate(attention.sum(axis=1)):
        free = np.flatnonzero(~np.isin(ids[row, :length], special))
        if len(free):
            chosen[row, free[random.random(len(free)) < share]] = True
            # Every text needs a mask; with a small share, a short text would often get none.
            chosen[row, random.choice(free)] = True
        else:
            # Nothing but special and unknown tokens: mask any token, so that the text still has a row.
            chosen[row, length // 2] = True
    answers = ids[chosen]
    ids[chosen] = tokenizer.mask_token_id
    return Batch.of(ids, attention, chosen, answers)


def padded(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[int]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Add special tokens and padding on the right.

    Returns:
        Token ids and attention mask, [texts, length], and the place of the first token of each text.
    """
    begin, end = special_ends(tokenizer)
    whole = [[*begin, *text, *end] for text in texts]
    length = max(map(len, whole))
    ids = np.full((len(whole), length), tokenizer.pad_token_id, np.int64)
    attention = np.zeros_like(ids)
    for row, tokens in enumerate(whole):
        ids[row, : len(tokens)] = tokens
        attention[row, : len(tokens)] = 1
    return ids, attention, len(begin)


def text_batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[int]], room: int, *, share: float, size: int = 20
) -> list[Batch]:
    """Return texts in batches of similar length, each text with at least one mask.

    Args:
        tokenizer: The model's tokenizer.
        texts: Token ids without special tokens; longer texts are truncated.
        room: Maximum number of tokens in a text, without special tokens.
        share: Share of other tokens to mask.
        size: Texts per batch.
    """
    order = sorted((ids[:room] for ids in texts if ids), key=len)
    random = np.random.default_rng(0)
    return [mask_texts(tokenizer, order[at : at + size], random, share=share) for at in range(0, len(order), size)]


def shape_batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[int]], longest: int
) -> Iterator[tuple[str, Batch]]:
    """Yield batches of several lengths and sizes filled with text, up to the maximum length of the model.

    Args:
        tokenizer: The model's tokenizer.
        texts: Token ids without special tokens.
        longest: Maximum number of tokens in a text, special tokens included.
    """
    stream = cycle(chain.from_iterable(texts))
    random = np.random.default_rng(0)
    special = tokenizer.num_special_tokens_to_add()
    # One short text, mixed lengths (padding), equal lengths (no padding), unsorted lengths, and the longest text.
    for shape in ([8], [5, 17, 32], [16] * 8, [128, 90, 61, 7], [longest]):
        cut = [[next(stream) for _ in range(max(1, min(length, longest) - special))] for length in shape]
        batch = mask_texts(tokenizer, cut, random, share=0.15)
        yield f"{len(shape)} x {batch.input_ids.shape[1]}", batch


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts, without special tokens."""
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return encoded
