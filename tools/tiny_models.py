"""Tiny random masked language models, each with a tokenizer of its family trained on the built-in reviews."""

from collections.abc import Callable
from pathlib import Path

import torch
from mlm_infer.benchmarks.shapes import byte_level_bpe, word_piece
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertTokenizerFast,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

__all__ = ["BUILDERS"]

_VOCABULARY = 2000
_LONGEST = 64


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    # Larger weights than at the start of training, so that the answers depend on the text and have no near ties.
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.15, generator=generator)
        elif parameter.shape[0] == len(tokenizer):
            parameter.data.normal_(0, 0.5, generator=generator)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    """A cased BERT."""
    tokenizer = word_piece(BertTokenizerFast, size=_VOCABULARY, longest=_LONGEST, lowercase=False)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return _save(BertForMaskedLM(config), tokenizer, folder)


def distilbert(folder: Path) -> Path:
    """An uncased DistilBERT."""
    tokenizer = word_piece(DistilBertTokenizerFast, size=_VOCABULARY, longest=_LONGEST, lowercase=True)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64
    )
    return _save(DistilBertForMaskedLM(config), tokenizer, folder)


def roberta(folder: Path) -> Path:
    """A RoBERTa: 66 positions hold 64 tokens."""
    tokenizer = byte_level_bpe(size=_VOCABULARY, longest=_LONGEST)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _save(RobertaForMaskedLM(config), tokenizer, folder)


BUILDERS: dict[str, Callable[[Path], Path]] = {"bert": bert, "distilbert": distilbert, "roberta": roberta}
