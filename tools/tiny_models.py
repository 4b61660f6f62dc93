"""Tiny random masked language models of every architecture, each with a tokenizer of its family.

The tokenizers are trained on the built-in reviews. What sets an architecture apart (positions, padding, token types,
windows, relative positions) is set as its well-known checkpoints set it, in small.
"""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from mlm_infer.benchmarks.shapes import byte_level_bpe, esm_tokenizer, word_piece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerBase

from mlm_infer.shared.samples import movie_reviews

__all__ = ["BUILDERS", "WIDE"]

_VOCABULARY = 2000
_LONGEST = 64
_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dim": 64,  # DistilBERT's name for the same
    "embedding_size": 32,
    "max_position_embeddings": _LONGEST,
    "block_size": 4,
}
WIDE = _TINY | {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 1024,
    "hidden_dim": 1024,
    "embedding_size": 256,
    "max_position_embeddings": 512,
    "block_size": 64,
}
"""Sizes at which the time is the model's and not the tokenizer's."""

_BERT_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA_TOKENS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
_BIG_BIRD_TOKENS = {
    "pad": "<pad>",
    "eos": "</s>",
    "bos": "<s>",
    "unk": "<unk>",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
}
_ALBERT_TOKENS = {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def _word_piece(kind: str, *, lowercase: bool = True) -> PreTrainedTokenizerBase:
    return word_piece(getattr(transformers, kind), size=_VOCABULARY, longest=_LONGEST, lowercase=lowercase)


def _mpnet_word_piece() -> PreTrainedTokenizerBase:
    """BERT's WordPiece with RoBERTa's special tokens."""
    tokens = _ROBERTA_TOKENS | {"unk": "[UNK]"}
    tokenizer = Tokenizer(models.WordPiece(unk_token=tokens["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=_VOCABULARY, special_tokens=list(tokens.values()), show_progress=False
    )
    tokenizer.train_from_iterator(movie_reviews(), trainer)
    return _wrap(tokenizer, "MPNetTokenizerFast", tokens)


def _roberta_bpe() -> PreTrainedTokenizerBase:
    return byte_level_bpe(size=_VOCABULARY, longest=_LONGEST)


def _wrap(tokenizer: Tokenizer, kind: str, tokens: dict[str, str], **options: Any) -> PreTrainedTokenizerBase:
    """Let a tokenizer add its special tokens around a text, and wrap it in its class."""
    begin, end = tokens["cls"], tokens["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(each, tokenizer.token_to_id(each)) for each in (begin, end)]
    )
    names = {f"{name}_token": token for name, token in tokens.items()}
    names["mask_token"] = AddedToken(tokens["mask"], lstrip=True, special=True)
    return getattr(transformers, kind)(tokenizer_object=tokenizer, model_max_length=_LONGEST, **names, **options)


def _byte_level(kind: str, tokens: dict[str, str], **options: Any) -> PreTrainedTokenizerBase:
    """Byte-level BPE with BERT's special tokens, as DeBERTa and ModernBERT have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(tokens.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(movie_reviews(), trainer)
    return _wrap(tokenizer, kind, tokens, **options)


def _generic_bpe() -> PreTrainedTokenizerBase:
    """Byte-level BPE in no class of its own, as ModernBERT and EuroBERT have it."""
    return _byte_level("PreTrainedTokenizerFast", _BERT_TOKENS, model_input_names=["input_ids", "attention_mask"])


@cache
def _pieces() -> list[tuple[str, float]]:
    """Train SentencePiece's Unigram once: pieces and the logarithms of their probabilities."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<unk>"],
        unk_token="<unk>",  # noqa: S106
        show_progress=False,
    )
    tokenizer.train_from_iterator(movie_reviews()[:3000], trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [(piece, score) for piece, score in vocabulary if piece != "<unk>"]


def _unigram(kind: str, tokens: dict[str, str]) -> PreTrainedTokenizerBase:
    special = [(token, 0.0) for token in tokens.values()]
    tokenizer = Tokenizer(models.Unigram([*special, *_pieces()], unk_id=list(tokens).index("unk")))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _wrap(tokenizer, kind, tokens)


def _word_bpe() -> PreTrainedTokenizerBase:
    """BPE that marks the end of a word, as XLM has it; its own class splits words in Python, so this is none of it."""
    tokens = {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<special1>"}
    tokenizer = Tokenizer(models.BPE(unk_token=tokens["unk"], end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(tokens.values()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    # Token types are word embeddings to XLM: a tokenizer that gives zeros would add that of token 0 everywhere.
    inputs = ["input_ids", "attention_mask"]
    tokenizer.train_from_iterator(movie_reviews(), trainer)
    return _wrap(tokenizer, "PreTrainedTokenizerFast", tokens, model_input_names=inputs)


def _esmc_residues() -> PreTrainedTokenizerBase:
    """ESM C's vocabulary of amino acids, which is part of its class."""
    return transformers.EsmcTokenizer(model_max_length=_LONGEST)


def _build(
    architecture: str,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    options: dict[str, Any],
    folder: Path,
    *,
    sizes: dict[str, int] = _TINY,
) -> Path:
    """Write a checkpoint with large random weights: its answers depend on the text and have no near ties."""
    made = tokenizer()
    made.model_max_length = sizes["max_position_embeddings"]
    values = {"pad_token_id": made.pad_token_id, **sizes, **options}
    values["max_position_embeddings"] += values.pop("offset", 0)
    config = AutoConfig.for_model(architecture, vocab_size=len(made), **values)
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    deviation = 0.15 * (_TINY["hidden_size"] / sizes["hidden_size"]) ** 0.5
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, deviation, generator=generator)
        elif parameter.shape[0] == len(made):
            parameter.data.normal_(0, 0.5, generator=generator)
    model.tie_weights()
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


_NARROW = {"embedding_size": 16}
_OFFSET = {"offset": 2, "type_vocab_size": 1}
"""Positions begin after the padding id, 1: 66 hold 64 tokens."""
_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}

_ARCHITECTURES: dict[str, tuple[Callable[..., PreTrainedTokenizerBase], dict[str, Any]]] = {
    "albert": (partial(_unigram, "AlbertTokenizerFast", _ALBERT_TOKENS), _NARROW),
    "bert": (partial(_word_piece, "BertTokenizerFast", lowercase=False), {}),
    "big_bird": (
        partial(_unigram, "BigBirdTokenizerFast", _BIG_BIRD_TOKENS),
        {"num_random_blocks": 3},
    ),
    "camembert": (partial(_unigram, "CamembertTokenizerFast", _ROBERTA_TOKENS), _OFFSET),
    "convbert": (partial(_word_piece, "ConvBertTokenizerFast"), _NARROW),
    "data2vec-text": (_roberta_bpe, _OFFSET),
    "deberta": (partial(_byte_level, "DebertaTokenizerFast", _BERT_TOKENS), _RELATIVE),
    "deberta-v2": (
        partial(_unigram, "DebertaV2TokenizerFast", _BERT_TOKENS),
        _RELATIVE
        | {
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
        },
    ),
    "distilbert": (
        partial(_word_piece, "DistilBertTokenizerFast"),
        {},
    ),
    "electra": (partial(_word_piece, "ElectraTokenizerFast"), _NARROW),
    "esm": (
        partial(esm_tokenizer, longest=_LONGEST),
        {
            "position_embedding_type": "rotary",
            "token_dropout": True,
            "mask_token_id": 32,
            "emb_layer_norm_before": False,
        },
    ),
    "flaubert": (_word_bpe, {"pad_index": 2}),
    "ibert": (_roberta_bpe, _OFFSET),
    "longformer": (_roberta_bpe, _OFFSET | {"attention_window": 8}),
    "megatron-bert": (partial(_word_piece, "BertTokenizerFast"), {}),
    "mobilebert": (partial(_word_piece, "MobileBertTokenizerFast"), _NARROW | {"intra_bottleneck_size": 16}),
    "modernbert": (
        _generic_bpe,
        {"local_attention": 8, "global_attn_every_n_layers": 2},
    ),
    "mpnet": (_mpnet_word_piece, _OFFSET),
    "nystromformer": (
        partial(_unigram, "AlbertTokenizerFast", _ALBERT_TOKENS),
        {"segment_means_seq_len": 64, "num_landmarks": 64, "conv_kernel_size": 5},
    ),
    "rembert": (
        partial(_unigram, "RemBertTokenizerFast", _ALBERT_TOKENS),
        {"input_embedding_size": 16, "output_embedding_size": 48},
    ),
    "roberta": (_roberta_bpe, _OFFSET),
    "roformer": (partial(_word_piece, "BertTokenizerFast"), _NARROW | {"rotary_value": False}),
    "squeezebert": (partial(_word_piece, "SqueezeBertTokenizerFast"), {}),
    "xlm": (_word_bpe, {"pad_index": 2, "n_langs": 1, "use_lang_emb": False}),
    "xlm-roberta": (partial(_unigram, "XLMRobertaTokenizerFast", _ROBERTA_TOKENS), _OFFSET),
}

# What Optimum does not export; those that transformers 4 knows are exported by the exporter of transformers 5 alone.
_IS_5 = int(transformers.__version__.partition(".")[0]) >= 5
_GATED = {"hidden_act": "silu", "num_key_value_heads": 4, "head_dim": 8}

_SINCE_TRANSFORMERS_5: dict[str, tuple[Callable[..., PreTrainedTokenizerBase], dict[str, Any]]] = {
    "ernie": (partial(_word_piece, "BertTokenizerFast"), {}),
    "esmc": (_esmc_residues, {"num_key_value_heads": 4, "head_dim": 8}),
    "eurobert": (_generic_bpe, _GATED),
    "fnet": (partial(_unigram, "AlbertTokenizerFast", _ALBERT_TOKENS), {}),
    "gte": (partial(_unigram, "XLMRobertaTokenizerFast", _ROBERTA_TOKENS), {}),
    "jina_embeddings_v3": (partial(_unigram, "XLMRobertaTokenizerFast", _ROBERTA_TOKENS), {}),
    "luke": (_roberta_bpe, _OFFSET | {"entity_vocab_size": 10, "entity_emb_size": 8}),
    "nomic_bert": (partial(_word_piece, "BertTokenizerFast"), {"head_dim": 8}),
    "roberta-prelayernorm": (_roberta_bpe, _OFFSET),
    "roc_bert": (partial(_word_piece, "BertTokenizerFast"), {}),
    "ultrabert": (_generic_bpe, _GATED),
    "xlm-roberta-xl": (partial(_unigram, "XLMRobertaTokenizerFast", _ROBERTA_TOKENS), _OFFSET),
    "xmod": (
        partial(_unigram, "XLMRobertaTokenizerFast", _ROBERTA_TOKENS),
        _OFFSET | {"default_language": "en_XX", "languages": ["en_XX"]},
    ),
}

BUILDERS: dict[str, Callable[..., Path]] = {
    name: partial(_build, name, tokenizer, options)
    for name, (tokenizer, options) in (_ARCHITECTURES | (_SINCE_TRANSFORMERS_5 if _IS_5 else {})).items()
}
"""By architecture, `model_type` of a configuration: a function that writes the model to a folder and returns it."""
