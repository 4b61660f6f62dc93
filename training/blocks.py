"""From documents to blocks of token ids, and from blocks to masks that are frozen once for evaluation."""

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
    """Blocks of token ids that begin and end as a text does when the model serves.

    Args:
        ids: Token ids, one block a list; only the last may be shorter than the others.
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
        """Return at most `count` of the blocks, drawn without replacement and kept in order."""
        if count is None or count >= len(self.ids):
            return self
        rows = np.sort(np.random.default_rng(seed).permutation(len(self.ids))[:count])
        return Blocks([self.ids[row] for row in rows], self._special_ids)


def make_blocks(documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int) -> Blocks:
    """Tokenize documents whole, join them with the separator, and cut them into blocks.

    Args:
        documents: A data set with the column `text`.
        tokenizer: Adds the special tokens that the model sees when it serves.
        block_size: Tokens a block, special tokens included.

    Returns:
        The blocks; no token of the text is dropped.

    Raises:
        InputError: The block leaves no room between the special tokens.
        DataError: The text holds no token.
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
    """Return the collator that pads and masks: 80 % mask, 10 % random token, 10 % kept."""
    return DataCollatorForLanguageModeling(tokenizer, mlm_probability=mlm_probability, seed=seed)


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """One batch of a frozen evaluation.

    Attributes:
        input_ids: Token ids with the masks in place, [batch, length].
        attention_mask: 1 for a token, 0 for padding, [batch, length].
        labels: The id to predict, -100 where nothing is, [batch, length].
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


def freeze_masks(
    blocks: Blocks, tokenizer: PreTrainedTokenizerBase, *, mlm_probability: float, batch_size: int, seed: int
) -> list[MaskedBatch]:
    """Mask blocks once, so that every evaluation answers the same questions.

    Args:
        blocks: What to mask.
        tokenizer: Gives the mask and the padding.
        mlm_probability: Share of the tokens to predict.
        batch_size: Blocks a batch.
        seed: Seed of the masks.

    Returns:
        The batches.

    Raises:
        DataError: No token at all was chosen.
    """
    collate = mask_collator(tokenizer, mlm_probability, seed)
    batches = []
    for start in range(0, len(blocks), batch_size):
        batch = collate([blocks[row] for row in range(start, min(start + batch_size, len(blocks)))])
        batches.append(MaskedBatch(batch["input_ids"], batch["attention_mask"], batch["labels"]))
    if not any(bool((batch.labels != -100).any()) for batch in batches):
        raise DataError("the validation text is so short that no token was masked; give more of it")
    return batches
