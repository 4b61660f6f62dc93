"""Cuts documents into blocks of token ids, and draws fixed masks for evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from mlm_infer.errors import DataError, InputError
from mlm_infer.shared.checkpoint import special_ends

__all__ = ["Blocks", "MaskedBatch", "freeze_masks", "make_blocks", "mask_collator"]


class Blocks(Dataset[dict[str, list[int]]]):
    """Blocks of token ids with the special tokens that a text has at inference.

    Args:
        ids: Token ids, one list per block; only the last block may be shorter.
        special_ids: Ids that are never masked.
    """

    def __init__(self, ids: list[list[int]], special_ids: frozenset[int]) -> None:
        self.ids = ids
        self._special_ids = special_ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        ids = self.ids[row]
        return {"input_ids": ids, "special_tokens_mask": [int(token in self._special_ids) for token in ids]}

    def sample(self, count: int | None, seed: int) -> "Blocks":
        """Return at most `count` blocks, drawn without replacement, in their original order."""
        if count is None or count >= len(self.ids):
            return self
        rows = np.sort(np.random.default_rng(seed).permutation(len(self.ids))[:count])
        return Blocks([self.ids[row] for row in rows], self._special_ids)


def make_blocks(documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int) -> Blocks:
    """Tokenize documents, join them with the separator token, and cut the result into blocks.

    Args:
        documents: A data set with the column `text`.
        tokenizer: Adds the special tokens that the model sees at inference.
        block_size: Tokens per block, special tokens included.

    Returns:
        The blocks; no token of the text is dropped.

    Raises:
        InputError: A block has no room besides its special tokens.
        DataError: The text has no tokens.
    """
    begin, end = special_ends(tokenizer)
    room = block_size - len(begin) - len(end)
    if room < 1:
        raise InputError(f"block_size is {block_size}, but the special tokens alone take {block_size - room}")
    tokenized = documents.map(
        lambda rows: {"ids": tokenizer(rows["text"], add_special_tokens=False, verbose=False)["input_ids"]},
        batched=True,
        remove_columns=documents.column_names,
        desc="Tokenizing",
    )
    separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    blocks = [[*begin, *chunk, *end] for chunk in _chunks(tokenized, separator, room)]
    if not blocks:
        raise DataError("the text gives no tokens with this tokenizer")
    return Blocks(blocks, frozenset(tokenizer.all_special_ids))


def _chunks(tokenized: datasets.Dataset, separator: int | None, room: int) -> Iterator[list[int]]:
    # Tokens that do not fill a block start the next one, so none is dropped; only the very last block can be shorter.
    pending: list[int] = []
    for row in tokenized:
        if pending and separator is not None:
            pending.append(separator)
        pending.extend(row["ids"])
        whole = len(pending) // room * room
        for start in range(0, whole, room):
            yield pending[start : start + room]
        pending = pending[whole:]
    if pending:
        yield pending


def mask_collator(
    tokenizer: PreTrainedTokenizerBase, mlm_probability: float, seed: int
) -> DataCollatorForLanguageModeling:
    """Return the collator that pads and masks: 80 % masked, 10 % random token, 10 % unchanged."""
    return DataCollatorForLanguageModeling(tokenizer, mlm_probability=mlm_probability, seed=seed)


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """One evaluation batch with fixed masks.

    Attributes:
        input_ids: Token ids with the masks in place, [batch, length].
        attention_mask: 1 for a token, 0 for padding, [batch, length].
        labels: The id to predict, or -100 for positions without prediction, [batch, length].
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


def freeze_masks(
    blocks: Blocks, tokenizer: PreTrainedTokenizerBase, *, mlm_probability: float, batch_size: int, seed: int
) -> list[MaskedBatch]:
    """Mask blocks once, so that all evaluations of a run predict the same tokens and are comparable.

    Args:
        blocks: The blocks to mask.
        tokenizer: Provides the mask and padding tokens.
        mlm_probability: Share of the tokens to predict.
        batch_size: Blocks per batch.
        seed: Seed of the masks.

    Returns:
        The batches.

    Raises:
        DataError: No token was selected.
    """
    collate = mask_collator(tokenizer, mlm_probability, seed)
    batches = []
    for start in range(0, len(blocks), batch_size):
        batch = collate([blocks[row] for row in range(start, min(start + batch_size, len(blocks)))])
        batches.append(MaskedBatch(batch["input_ids"], batch["attention_mask"], batch["labels"]))
    if not any(bool((batch.labels != -100).any()) for batch in batches):
        raise DataError("the validation text is so short that no token was masked; give more of it")
    return batches
