"""Checkpoints of well-known shapes with random weights: sufficient to measure speed, without downloads."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertTokenizerFast,
    EsmConfig,
    EsmForMaskedLM,
    EsmTokenizer,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizerFast,
)

from mlm_infer.shared.samples import movie_reviews

__all__ = ["SHAPES", "byte_level_bpe", "esm_tokenizer", "make_checkpoint", "word_piece"]


def word_piece(
    kind: type[PreTrainedTokenizerFast], *, size: int, longest: int, lowercase: bool
) -> PreTrainedTokenizerFast:
    """Train a WordPiece tokenizer like BERT's on the built-in reviews.

    Args:
        kind: Class of the tokenizer.
        size: Size of the vocabulary.
        longest: Maximum number of tokens in a text.
        lowercase: Whether it is uncased.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(movie_reviews(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return kind(tokenizer_object=_fill_up(tokenizer, size), do_lower_case=lowercase, model_max_length=longest)


def byte_level_bpe(*, size: int, longest: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer like RoBERTa's on the built-in reviews; its mask absorbs the space before it.

    Args:
        size: Size of the vocabulary.
        longest: Maximum number of tokens in a text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        # All 256 bytes, so that no text is unknown, as in the original vocabulary.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(movie_reviews(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return RobertaTokenizerFast(tokenizer_object=_fill_up(tokenizer, size), model_max_length=longest)


def _fill_up(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """Add filler tokens up to the given size, since the reviews do not yield a vocabulary of the real size."""
    values = json.loads(tokenizer.to_str())
    vocabulary = values["model"]["vocab"]
    vocabulary.update({f"filler{number}": number for number in range(len(vocabulary), size)})
    return Tokenizer.from_str(json.dumps(values))


# The sizes are those of the published models; the defaults of the other two classes are theirs already.
def _distilroberta(layers: int = 6) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    config = RobertaConfig(
        vocab_size=50265,
        num_hidden_layers=layers,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    return RobertaForMaskedLM(config), byte_level_bpe(size=50265, longest=512)


def _distilbert() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return DistilBertForMaskedLM(DistilBertConfig()), word_piece(
        DistilBertTokenizerFast, size=30522, longest=512, lowercase=True
    )


def _bert_base() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return BertForMaskedLM(BertConfig()), word_piece(BertTokenizerFast, size=30522, longest=512, lowercase=True)


def _modernbert_base() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    return ModernBertForMaskedLM(ModernBertConfig(**ids)), byte_level_bpe(size=50368, longest=512)


def esm_tokenizer(*, longest: int) -> EsmTokenizer:
    """Return ESM's tokenizer, whose vocabulary of amino acids comes with every checkpoint.

    Args:
        longest: Maximum number of tokens in a text.
    """
    tokens = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vocab.txt")
        path.write_text("\n".join(tokens), encoding="utf-8")
        return EsmTokenizer(str(path), model_max_length=longest)


def _esm2_35m() -> tuple[PreTrainedModel, EsmTokenizer]:
    tokenizer = esm_tokenizer(longest=1024)
    config = EsmConfig(
        vocab_size=len(tokenizer),
        hidden_size=480,
        num_hidden_layers=12,
        num_attention_heads=20,
        intermediate_size=1920,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
        mask_token_id=tokenizer.mask_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return EsmForMaskedLM(config), tokenizer


SHAPES: dict[str, Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]] = {
    "distilroberta": _distilroberta,
    "distilbert": _distilbert,
    "bert-base": _bert_base,
    "modernbert-base": _modernbert_base,
    "esm2-35m": _esm2_35m,
}


def make_checkpoint(shape: str, folder: Path) -> Path:
    """Write a random checkpoint with the shape of a well-known model.

    Args:
        shape: A name of `SHAPES`.
        folder: Folder to write; an existing checkpoint is reused.

    Returns:
        `folder`.
    """
    if not (folder / "config.json").exists():
        # Seeded: every run measures the same weights, and agreement figures can be compared.
        torch.manual_seed(0)
        model, tokenizer = SHAPES[shape]()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
