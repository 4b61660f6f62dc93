"""Opening a PyTorch checkpoint for training or export. The run time never calls this: it has no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["open_checkpoint"]


def open_checkpoint(
    model: str, *, attention: str | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]":
    """Load a masked language model and its tokenizer.

    Args:
        model: Hub id or folder.
        attention: Which implementation of attention to build, such as `eager`; None takes transformers' choice.

    Returns:
        The model in fp32, the tokenizer, and the names of the weights that the checkpoint lacks and that
        therefore hold random values; a head without weights is among them, a tied one is not.

    Raises:
        ModelError: It cannot be loaded, is no masked language model, or its tokenizer has no mask.
    """
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    path = Path(model).expanduser()
    if path.exists() and not (path / "config.json").is_file():
        raise ModelError(f"{model} is no checkpoint: it holds no config.json")
    try:
        loaded, info = AutoModelForMaskedLM.from_pretrained(
            model, output_loading_info=True, dtype=torch.float32, attn_implementation=attention
        )
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"cannot load {model} as a masked language model: {reason[0]}") from error
    if tokenizer.mask_token_id is None:
        raise ModelError(f"the tokenizer of {model} has no mask token, so nothing can be masked")
    embeddings = loaded.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embeddings:
        raise ModelError(
            f"the tokenizer of {model} has {len(tokenizer)} tokens, its model only {embeddings} embeddings"
        )
    return loaded, tokenizer, sorted(info["missing_keys"])
