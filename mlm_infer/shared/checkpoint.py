"""Opens a PyTorch checkpoint for training or export. The run time, which has no torch, never uses this module."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlm_infer.errors import DependencyError, ModelError, first_line
from mlm_infer.locate.hub import is_hub_id

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["max_length", "open_checkpoint", "special_ends"]


def open_checkpoint(
    model: str, *, attention: str | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]":
    """Load a masked language model and its tokenizer.

    Args:
        model: Hub id or folder.
        attention: Attention implementation, such as `eager`; None is the default of transformers.

    Returns:
        The model in fp32, the tokenizer, and the names of weights that are missing from the checkpoint and therefore
        random; those of an untied head included.

    Raises:
        ModelError: It cannot be loaded, is not a masked language model, or its tokenizer has no mask.
        DependencyError: Its tokenizer needs a package that is not installed.
    """
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, __version__

    path = Path(model).expanduser()
    if not path.exists() and not is_hub_id(model):
        raise ModelError(f"there is no folder {model}; name the folder of a checkpoint, or a model of the Hub")
    if path.exists() and not (path / "config.json").is_file():
        raise ModelError(f"{model} is not a checkpoint: it contains no config.json")
    try:
        _check_task(model, AutoConfig.from_pretrained(model, trust_remote_code=False))
        # A bar for reading files that are on the disk already; that of the download is huggingface-hub's.
        with _no_bars():
            loaded, info = AutoModelForMaskedLM.from_pretrained(
                model,
                output_loading_info=True,
                dtype=torch.float32,
                attn_implementation=attention,
                trust_remote_code=False,
            )
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except ImportError as error:
        raise DependencyError(
            f"the tokenizer of {model} is written in Python and needs another package: "
            f"{' '.join(str(error).split())} (to train; to export it, it must have a tokenizer.json instead)"
        ) from error
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(f"cannot load {model} as a masked language model: {first_line(error)}") from error
    if tokenizer.mask_token_id is None:
        raise ModelError(f"the tokenizer of {model} has no mask token, so nothing can be masked")
    table = getattr(loaded.get_input_embeddings(), "weight", None)
    if table is None:
        raise ModelError(f"{model} is a {loaded.config.model_type} model, which has no table of token embeddings")
    embeddings = table.shape[0]
    if len(tokenizer) > embeddings:
        raise ModelError(
            f"the tokenizer of {model} has {len(tokenizer)} tokens, its model only {embeddings} embeddings"
        )
    if __version__.startswith("4."):
        _show_mask_to_embeddings(loaded)
    return loaded, tokenizer, sorted(info["missing_keys"])


def _show_mask_to_embeddings(model: "PreTrainedModel") -> None:
    """Let ESM take its share of masked tokens over the tokens of a text, as transformers 5 does.

    transformers 4 does not pass the attention mask to the embeddings, so that the share would count padding
    (huggingface/transformers#44163).
    """
    base = model.base_model
    embeddings: Any = getattr(base, "embeddings", None)
    if not getattr(embeddings, "token_dropout", False):
        return

    def embed(_module: Any, inputs: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[None], dict[str, Any]]:
        # The head passes the ids by position and the rest by name.
        known = {name: given.get(name) for name in ("attention_mask", "position_ids")}
        return (None,), given | {"inputs_embeds": embeddings(input_ids=inputs[0], **known)}

    base.register_forward_pre_hook(embed, with_kwargs=True)


def _check_task(model: str, config: "PretrainedConfig") -> None:
    """Reject by its architecture what transformers may load as a masked language model, or names in many lines."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, __version__

    kind, problem = f"{model} is a {config.model_type} model", ""
    if getattr(config, "is_encoder_decoder", False):
        problem = "which predicts with a decoder"
    elif getattr(config, "is_decoder", False) or (
        type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    ):
        problem = "which predicts from left to right"
    elif type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        problem = f"for which transformers {__version__} has no masked-language-model head"
    if problem:
        raise ModelError(f"{kind}, {problem}; choose a masked language model, such as one of BERT or RoBERTa")


@contextmanager
def _no_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def max_length(model: "PreTrainedModel", tokenizer_limit: int) -> int:
    """Return how many tokens a text may have, special ones included.

    Position embeddings with a padding index start after it, so RoBERTa's 514 embeddings hold 512 tokens. Above a length
    that depends on its blocks, BigBird's attention is sparse and partly random.

    Args:
        model: The model.
        tokenizer_limit: `model_max_length` of its tokenizer, which may be absurdly large.
    """
    # The smallest of all limits, since configurations and tokenizers of checkpoints often disagree.
    limits = [tokenizer_limit]
    for name in ("max_position_embeddings", "n_positions"):
        value = getattr(model.config, name, None)
        if isinstance(value, int) and value > 0:
            limits.append(value)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and hasattr(module, "weight"):
            padding = getattr(module, "padding_idx", None)
            limits.append(module.weight.shape[0] - (0 if padding is None else padding + 1))
    # Up to this length, transformers itself switches BigBird to full attention.
    if getattr(model.config, "attention_type", None) == "block_sparse":
        limits.append((5 + 2 * model.config.num_random_blocks) * model.config.block_size)
    return min(limits)


def special_ends(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer adds before and after a text.

    `build_inputs_with_special_tokens` does not know them if the class is `PreTrainedTokenizerFast` itself, as for
    ModernBERT, since they are defined in `tokenizer.json` only.

    Args:
        tokenizer: A tokenizer with a mask token.
    """
    # The mask token is a single token in every tokenizer, so what surrounds it is what is added.
    whole: list[int] = tokenizer(tokenizer.mask_token)["input_ids"]
    inner = tokenizer(tokenizer.mask_token, add_special_tokens=False)["input_ids"]
    start = next(at for at in range(len(whole)) if whole[at : at + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]
