"""Masks and order are functions of seed, epoch and block; dropout of 0 leaves nothing to chance."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlm_infer.training.blocks import Blocks, make_blocks
from mlm_infer.training.data import load_documents
from mlm_infer.training.dropout import set_dropout
from mlm_infer.training.masks import BlockOrder, MaskedBatch, MaskedBlocks, MaskRule, freeze_masks
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM, AutoTokenizer

from tests.helpers.architectures import ARCHITECTURES, each
from tests.helpers.texts import blocks_of


@pytest.fixture(scope="module")
def text(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Blocks, MaskRule]:
    """Blocks of two lengths, and the rule of BERT's vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    blocks = make_blocks(load_documents("movie-reviews", split="validation"), tokenizer, 64).sample(100, 0)
    rows = [ids.tolist()[: 64 - row % 3] for row, ids in enumerate(blocks)]
    return blocks_of(rows, tmp_path_factory.mktemp("blocks")), MaskRule.of(tokenizer, 0.15)


def rows(batches: Iterable[MaskedBatch]) -> list[tuple[bytes, bytes]]:
    """Token ids and labels of each block, without padding."""
    found = []
    for batch in batches:
        for ids, attention, labels in zip(*batch.values(), strict=True):
            length = int(attention.sum())
            assert (labels[length:] == -100).all()
            found.append((ids[:length].numpy().tobytes(), labels[:length].numpy().tobytes()))
    return found


def test_frozen_masks_at_any_batch_size(text: tuple[Blocks, MaskRule]) -> None:
    """The same bytes at batch sizes 1, 8 and 64; another seed gives others."""
    blocks, rule = text
    one, eight, many = (rows(freeze_masks(blocks, rule, batch_size=size, seed=5)) for size in (1, 8, 64))
    assert one == eight == many
    assert len(set(one)) == len(blocks)
    other = rows(freeze_masks(blocks, rule, batch_size=8, seed=6))
    assert sum(a != b for a, b in zip(one, other, strict=True)) > 95


def epochs(text: tuple[Blocks, MaskRule], batch_size: int, multiple: int = 1, workers: int = 0) -> list[list[Any]]:
    """Two epochs of training as a loader gives them."""
    blocks, rule = text
    now = 0
    loader = DataLoader(
        MaskedBlocks(blocks, rule, 5),
        batch_size=batch_size,
        sampler=BlockOrder(len(blocks), 5, lambda: now, multiple=multiple),
        collate_fn=rule.collate,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    found = []
    for epoch in range(2):
        now = epoch
        found.append(rows(list(loader)))
    return found


def test_training_masks_at_any_batch_size_and_number_of_workers(text: tuple[Blocks, MaskRule]) -> None:
    """Neither batch size nor workers that live through all epochs change anything; epochs differ in everything."""
    first, second = epochs(text, 1)
    assert epochs(text, 8) == epochs(text, 64) == epochs(text, 16, workers=2) == [first, second]
    assert len(set(first)) == 100
    assert not set(first) & set(second)
    frozen = rows(freeze_masks(*text, batch_size=8, seed=5))
    assert not set(first) & set(frozen)


def test_order_is_filled_up_without_labels(text: tuple[Blocks, MaskRule]) -> None:
    """Up to a multiple of what all processes take in a step: no block is counted twice."""
    plain, filled = epochs(text, 8), epochs(text, 8, multiple=16)
    for one, other in zip(plain, filled, strict=True):
        assert other[:100] == one
        assert len(other) == 112
        assert all((np.frombuffer(labels, np.int64) == -100).all() for _, labels in other[100:])


@pytest.mark.parametrize("name", ["base", *each(ARCHITECTURES)])
def test_dropout_reaches_everything(name: str, checkpoints: dict[str, Path]) -> None:
    """At 0, two passes in training mode are equal, and equal to one in evaluation mode; at 0.3 they are not."""
    model = AutoModelForMaskedLM.from_pretrained(checkpoints[name])
    saved = model.config.to_dict()
    ids = torch.randint(4, 30, (3, 40), generator=torch.Generator().manual_seed(0))
    attention = torch.ones_like(ids)
    attention[1, 30:] = 0

    @torch.no_grad()
    def logits() -> torch.Tensor:
        found: torch.Tensor = model(input_ids=ids, attention_mask=attention).logits
        return found

    expected = logits()
    model.train()
    set_dropout(model, 0.3)
    assert not torch.equal(logits(), logits())
    set_dropout(model, 0.0)
    assert torch.equal(logits(), logits())
    torch.testing.assert_close(logits(), expected, rtol=0, atol=1e-5)
    assert model.config.to_dict() == saved
