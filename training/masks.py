"""Selects the tokens to predict, as a function of seed, epoch and block.

No generator runs along: the masks are the same at any batch size, with any number of processes or loader workers, and
wherever a run is resumed.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypedDict, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from mlm_infer.errors import DataError

from .blocks import Blocks
from .encoders import CONTINUES, token_ids

__all__ = ["IGNORED", "BlockOrder", "MaskRule", "MaskedBatch", "MaskedBlocks", "freeze_masks"]

IGNORED = -100
"""The label of a position without prediction, as everywhere in transformers."""

# What random numbers are drawn for: equal seeds must not give equal numbers for different purposes.
_TRAINING, _EVALUATION, _ORDER = range(3)
_PADDING = -1


class MaskedBlock(TypedDict):
    """Token ids of a block with masks in place, and its labels, both [length]."""

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]


class MaskedBatch(TypedDict):
    """A batch as the model receives it, all [batch, length]; attention_mask is 1 for a token and 0 for padding."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True, slots=True)
class MaskRule:
    """The masking of Devlin et al. 2019, section 3.1: of the selected tokens 80 % masked, 10 % random, 10 % unchanged.

    If words are known, they are selected as a whole, each with the same probability, which is then that of each token.
    What becomes of a selected token is drawn for itself, as in `create_pretraining_data.py` of google-research/bert.

    Attributes:
        probability: Share of the tokens to predict.
        mask_share: Share of these that are masked.
        random_share: Share of these that are replaced by a random token.
        mask_id: Id of the mask token.
        pad_id: Id that fills up the shorter blocks of a batch.
        vocabulary: Number of tokens.
        special_ids: Ids that are never selected.
    """

    probability: float
    mask_share: float
    random_share: float
    mask_id: int
    pad_id: int
    vocabulary: int
    special_ids: tuple[int, ...]

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, probability: float, mask_share: float = 0.8, random_share: float = 0.1
    ) -> "MaskRule":
        """Return the rule for the vocabulary of a tokenizer."""
        # Padding is excluded from attention and loss, so any id serves where there is no token for it.
        pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        special_ids = tuple(tokenizer.all_special_ids)
        return cls(probability, mask_share, random_share, tokenizer.mask_token_id, pad_id, len(tokenizer), special_ids)

    def mask(self, block: NDArray[np.uint32], generator: np.random.Generator) -> MaskedBlock:
        """Mask one block, as `Blocks` holds it."""
        continues = block >= CONTINUES
        original = token_ids(block)
        draws = generator.random(len(original))
        # The draw for the first token of a word counts for all of them.
        draws = draws[np.maximum.accumulate(np.where(continues, 0, np.arange(len(draws))))]
        selected = (draws < self.probability) & ~np.isin(original, self.special_ids)
        fate = generator.random(len(original))
        other = generator.integers(self.vocabulary, size=len(original))
        replaced = self.mask_share + self.random_share
        masked = np.where(fate < self.mask_share, self.mask_id, np.where(fate < replaced, other, original))
        return {
            "input_ids": np.where(selected, masked, original),
            "labels": np.where(selected, original, IGNORED),
        }

    def collate(self, blocks: Sequence[MaskedBlock]) -> MaskedBatch:
        """Pad blocks on the right to a batch."""
        shape = len(blocks), max(len(block["labels"]) for block in blocks)
        input_ids = np.full(shape, self.pad_id)
        attention_mask = np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORED)
        for row, block in enumerate(blocks):
            length = len(block["labels"])
            input_ids[row, :length], labels[row, :length] = block["input_ids"], block["labels"]
            attention_mask[row, :length] = 1
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "labels": torch.from_numpy(labels),
        }


class MaskedBlocks(Dataset[MaskedBlock]):
    """Training blocks with their masks, by epoch and row; the keys come from `BlockOrder`.

    The epoch is part of the key, because a loader worker keeps its own copy of this object for the whole run.

    Args:
        blocks: The blocks.
        rule: How to mask them.
        seed: Seed of the masks.
    """

    def __init__(self, blocks: Blocks, rule: MaskRule, seed: int) -> None:
        self._blocks, self._rule, self._seed = blocks, rule, seed

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, key: tuple[int, int]) -> MaskedBlock:
        epoch, row = key
        if row == _PADDING:
            ids = token_ids(self._blocks[0])
            return {"input_ids": ids, "labels": np.full_like(ids, IGNORED)}
        return self._rule.mask(self._blocks[row], _generator(_TRAINING, self._seed, epoch, row))


class BlockOrder(Sampler[tuple[int, int]]):
    """The order of the blocks, a function of seed and epoch; yields the keys of `MaskedBlocks`.

    Args:
        count: Number of blocks.
        seed: Seed of the order.
        epoch: Returns the epoch that begins.
        multiple: The number of keys is rounded up to a multiple of this, with blocks without labels. All processes then
            make equally many steps, and no block is counted twice.
    """

    def __init__(self, count: int, seed: int, epoch: Callable[[], int], *, multiple: int = 1) -> None:
        self._count, self._seed, self._epoch, self._multiple = count, seed, epoch, multiple

    def __len__(self) -> int:
        return -(-self._count // self._multiple) * self._multiple

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self._epoch()
        rows = _generator(_ORDER, self._seed, epoch, 0).permutation(self._count)
        filling = [_PADDING] * (len(self) - self._count)
        return ((epoch, int(row)) for row in chain(rows, filling))


class FrozenBatches(Sequence[MaskedBatch]):
    """Batches of masked blocks, made again whenever they are asked for, since all of them may be larger than memory.

    Args:
        blocks: The blocks.
        rule: How to mask them.
        batch_size: Blocks per batch.
        seed: Seed of the masks.
    """

    def __init__(self, blocks: Blocks, rule: MaskRule, batch_size: int, seed: int) -> None:
        self._blocks, self._rule, self._batch_size, self._seed = blocks, rule, batch_size, seed

    def __len__(self) -> int:
        return math.ceil(len(self._blocks) / self._batch_size)

    @overload
    def __getitem__(self, at: int) -> MaskedBatch: ...

    @overload
    def __getitem__(self, at: slice) -> list[MaskedBatch]: ...

    def __getitem__(self, at: int | slice) -> MaskedBatch | list[MaskedBatch]:
        every = range(len(self))
        if isinstance(at, slice):
            return [self[number] for number in every[at]]
        start = every[at] * self._batch_size
        rows = range(start, min(start + self._batch_size, len(self._blocks)))
        return self._rule.collate(
            [self._rule.mask(self._blocks[row], _generator(_EVALUATION, self._seed, 0, row)) for row in rows]
        )


def freeze_masks(blocks: Blocks, rule: MaskRule, *, batch_size: int, seed: int) -> Sequence[MaskedBatch]:
    """Mask blocks the same way each time, so that all evaluations predict the same tokens and are comparable.

    Args:
        blocks: The blocks to mask.
        rule: How to mask them.
        batch_size: Blocks per batch; the masks do not depend on it.
        seed: Seed of the masks.

    Returns:
        The batches.

    Raises:
        DataError: No token was selected.
    """
    frozen = FrozenBatches(blocks, rule, batch_size, seed)
    if not any((batch["labels"] != IGNORED).any() for batch in frozen):
        raise DataError("the validation text is so short that no token was masked; give more of it")
    return frozen


def _generator(purpose: int, seed: int, epoch: int, row: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox([purpose, seed, epoch, row]))
