"""A new model with the architecture of another, and a new tokenizer trained on the data."""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mlm_infer.errors import ModelError, first_line
from mlm_infer.shared.checkpoint import max_length

from .data import Documents

__all__ = ["new_model"]


def new_model(source: str, documents: Documents) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model with random weights, and its tokenizer.

    Args:
        source: Hub id, folder or `config.json` that gives the architecture and its sizes; the vocabulary has at most
            as many tokens as there. A tokenizer beside it is trained anew with the same steps and special tokens;
            without one, byte-level BPE is trained.
        documents: The training documents.

    Raises:
        ModelError: There is no such configuration, or it is not of a masked language model.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot read a configuration from {source}: {first_line(error)}") from error
    tokenizer = _new_tokenizer(source, config.vocab_size, documents)
    config.vocab_size = len(tokenizer)
    for name in ("pad", "bos", "eos", "cls", "sep", "mask"):
        identifier = getattr(tokenizer, f"{name}_token_id", None)
        if hasattr(config, f"{name}_token_id"):
            setattr(config, f"{name}_token_id", identifier)
    try:
        model = AutoModelForMaskedLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise ModelError(f"{source} is a {config.model_type}, which is no masked language model") from error
    tokenizer.model_max_length = max_length(model, tokenizer.model_max_length)
    return model, tokenizer


def _new_tokenizer(source: str, size: int, documents: Documents) -> PreTrainedTokenizerBase:
    old = None
    if not Path(source).expanduser().is_file():
        try:
            old = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError, TypeError):
            old = None
    if old is None or not old.is_fast or old.mask_token is None:
        return _byte_level_bpe(documents.batches(), size)
    new: PreTrainedTokenizerBase = old.train_new_from_iterator(documents.batches(), size, show_progress=False)
    return new


def _byte_level_bpe(texts: Iterator[list[str]], size: int) -> PreTrainedTokenizerFast:
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(names.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    # Token types would be embeddings that some architectures do not have.
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)
