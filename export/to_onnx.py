"""From a PyTorch checkpoint to the ONNX graph that Optimum exports."""

import logging
import warnings
from pathlib import Path

import onnx
import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from mlm_infer.errors import ExportError, ModelError

__all__ = ["ENCODER_INPUTS", "max_length", "optimum_export"]

OPSET = 18
ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def optimum_export(model: PreTrainedModel, folder: Path) -> Path:
    """Export a model through Optimum, logits at every position.

    Args:
        model: A masked language model.
        folder: Where to write.

    Returns:
        Path of the ONNX file.

    Raises:
        ModelError: Optimum does not export this architecture for fill-mask.
        ExportError: The export failed.
    """
    from optimum.exporters.onnx import onnx_export_from_model
    from optimum.exporters.tasks import TasksManager

    architecture = model.config.model_type
    supported = TasksManager.get_supported_model_type_for_task("fill-mask", exporter="onnx")
    if architecture.replace("_", "-") not in {each.replace("_", "-") for each in supported}:
        raise ModelError(
            f"Optimum does not export {architecture} for fill-mask; it exports {', '.join(sorted(supported))}"
        )
    # Optimum and the tracer report at length what is no concern of a user.
    transformers_logging.set_verbosity_error()
    logging.getLogger("optimum").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            onnx_export_from_model(model, folder, task="fill-mask", opset=OPSET, do_validation=False)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ExportError(f"Optimum could not export this {architecture}: {reason[0]}") from error
    path = folder / "model.onnx"
    strange = {each.name for each in onnx.load(path, load_external_data=False).graph.input} - set(ENCODER_INPUTS)
    if strange:
        raise ModelError(
            f"this {architecture} takes the inputs {', '.join(sorted(strange))}, which a text alone does not give; "
            "it cannot be exported"
        )
    return path


def max_length(model: PreTrainedModel, tokenizer_limit: int) -> int:
    """Return how many tokens a text may have, special ones included.

    Position embeddings with a padding index count from the one after it, so RoBERTa's 514 hold 512 tokens.

    Args:
        model: The model.
        tokenizer_limit: `model_max_length` of its tokenizer, which may be absurdly large.
    """
    limits = [tokenizer_limit]
    for name in ("max_position_embeddings", "n_positions"):
        value = getattr(model.config, name, None)
        if isinstance(value, int) and value > 0:
            limits.append(value)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - offset)
    return min(limits)
