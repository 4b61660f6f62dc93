"""Checkpoints of well-known shapes with random weights: sufficient to measure speed, without downloads."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
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

__all__ = ["SHAPES", "amino_acids", "byte_level_bpe", "make_checkpoint", "word_piece"]

_Model = tuple[PreTrainedModel, PreTrainedTokenizerBase]


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
    tokenizer = _byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], size)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return RobertaTokenizerFast(tokenizer_object=_fill_up(tokenizer, size), model_max_length=longest)


def _byte_level(special: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        # All 256 bytes, so that no text is unknown, as in the original vocabulary.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(movie_reviews(), trainer)
    return tokenizer


def amino_acids(*, longest: int) -> EsmTokenizer:
    """Return ESM's tokenizer, with the 33 entries that it ships.

    Args:
        longest: Maximum number of tokens in a text.
    """
    tokens = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vocab.txt")
        path.write_text("\n".join(tokens), encoding="utf-8")
        return EsmTokenizer(str(path), model_max_length=longest)


def _fill_up(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """Add filler tokens up to the given size, since the reviews do not yield a vocabulary of the real size."""
    values = json.loads(tokenizer.to_str())
    vocabulary = values["model"]["vocab"]
    vocabulary.update({f"filler{number}": number for number in range(len(vocabulary), size)})
    return Tokenizer.from_str(json.dumps(values))


# The sizes are those of the published models. Of a class that is not told any, they are the defaults already.
def _distilroberta() -> _Model:
    config = RobertaConfig(
        vocab_size=50265,
        num_hidden_layers=6,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    return RobertaForMaskedLM(config), byte_level_bpe(size=50265, longest=512)


def _distilbert() -> _Model:
    return DistilBertForMaskedLM(DistilBertConfig()), word_piece(
        DistilBertTokenizerFast, size=30522, longest=512, lowercase=True
    )


def _bert_base() -> _Model:
    return BertForMaskedLM(BertConfig()), word_piece(BertTokenizerFast, size=30522, longest=512, lowercase=True)


def _bert_large() -> _Model:
    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    return BertForMaskedLM(config), word_piece(BertTokenizerFast, size=30522, longest=512, lowercase=True)


def _modernbert_base() -> _Model:
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    size = 50368
    plain = _fill_up(_byte_level(list(special.values()), size), size)
    ids = {name: plain.token_to_id(token) for name, token in special.items()}
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["cls"]), ("[SEP]", ids["sep"])]
    )
    names: dict[str, str | AddedToken] = {f"{name}_token": token for name, token in special.items()}
    names["mask_token"] = AddedToken(special["mask"], lstrip=True, special=True)
    inputs = ["input_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, model_max_length=8192, model_input_names=inputs, **names
    )
    config = ModernBertConfig(
        vocab_size=size,
        pad_token_id=ids["pad"],
        cls_token_id=ids["cls"],
        bos_token_id=ids["cls"],
        sep_token_id=ids["sep"],
        eos_token_id=ids["sep"],
    )
    return ModernBertForMaskedLM(config), tokenizer


def _esm2_35m() -> _Model:
    config = EsmConfig(
        vocab_size=33,
        hidden_size=480,
        num_hidden_layers=12,
        num_attention_heads=20,
        intermediate_size=1920,
        max_position_embeddings=1026,
        layer_norm_eps=1e-5,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
        pad_token_id=1,
        mask_token_id=32,
    )
    return EsmForMaskedLM(config), amino_acids(longest=1024)


SHAPES: dict[str, Callable[[], _Model]] = {
    "distilroberta": _distilroberta,
    "distilbert": _distilbert,
    "bert-base": _bert_base,
    "modernbert-base": _modernbert_base,
    "esm2-35m": _esm2_35m,
    "bert-large": _bert_large,
}
"""In the order in which they are measured: the slowest last."""


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
