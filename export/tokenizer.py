"""Converts the tokenizer of a checkpoint to `tokenizer.json`, the only format that the run time reads."""

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import EsmTokenizer, PreTrainedTokenizerBase

from mlm_infer.errors import ModelError

__all__ = ["plain_tokenizer"]


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return a tokenizer without truncation and padding.

    Args:
        tokenizer: The tokenizer as loaded by transformers.

    Raises:
        ModelError: It runs its own Python code, which `tokenizer.json` cannot express.
    """
    kind = type(tokenizer).__name__
    if tokenizer.is_fast:
        try:
            plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(f"{kind} runs Python of its own, which tokenizer.json cannot hold: {error}") from error
        # Truncation would silently cut off masks, and the run time pads by itself.
        plain.no_padding()
        plain.no_truncation()
        return plain
    if isinstance(tokenizer, EsmTokenizer):
        return _residues(tokenizer)
    raise ModelError(
        f"{kind} exists in Python only, and the run time needs a tokenizer.json, which transformers cannot make of "
        "it; put one beside the checkpoint (PreTrainedTokenizerFast in its tokenizer_config.json)"
    )


def _residues(tokenizer: EsmTokenizer) -> Tokenizer:
    """Return ESM's tokenizer: every vocabulary entry is matched anywhere, and the rest between spaces is unknown."""
    vocabulary = tokenizer.get_vocab()
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token=tokenizer.unk_token))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = set(tokenizer.all_special_tokens)
    plain.add_tokens([AddedToken(each, normalized=False) for each in vocabulary if each not in special])
    plain.add_special_tokens([AddedToken(each, normalized=False, special=True) for each in sorted(special)])
    begin, end = tokenizer.cls_token, tokenizer.eos_token
    plain.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(each, vocabulary[each]) for each in (begin, end)]
    )
    return plain
