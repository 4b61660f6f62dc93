"""Cuts documents into blocks of token ids."""

from collections.abc import Iterator

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from mlm_infer.errors import DataError, InputError
from mlm_infer.shared.checkpoint import special_ends

__all__ = ["Blocks", "make_blocks"]


class Blocks:
    """Blocks of token ids with the special tokens that a text has at inference.

    Args:
        ids: Token ids, one list per block; only the last block may be shorter.
    """

    def __init__(self, ids: list[list[int]]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self, count: int | None, seed: int) -> "Blocks":
        """Return at most `count` blocks, drawn without replacement, in their original order."""
        if count is None or count >= len(self.ids):
            return self
        rows = np.sort(np.random.default_rng(seed).permutation(len(self.ids))[:count])
        return Blocks([self.ids[row] for row in rows])


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
    return Blocks(blocks)


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
