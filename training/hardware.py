"""Selects the training precision for the hardware and the model."""

import torch
from transformers import PreTrainedModel

from mlm_infer.errors import InputError
from mlm_infer.runtime.cpu import cpu_flags
from mlm_infer.shared.memory import is_out_of_memory

__all__ = ["choose_precision", "computes_in_half"]


def choose_precision(asked: str) -> str:
    """Return fp32, bf16 or fp16: the requested precision, or for `auto` the one that suits the hardware.

    Raises:
        InputError: fp16 was requested without a CUDA device.
    """
    cuda = torch.cuda.is_available()
    if asked == "fp16" and not cuda:
        raise InputError("precision is 'fp16', which needs a CUDA device; take --precision auto")
    if asked != "auto":
        return asked
    if cuda:
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    # Without these instructions, bf16 on a CPU is emulated and slower than fp32.
    return "bf16" if cpu_flags() & {"avx512_bf16", "amx_bf16"} else "fp32"


@torch.no_grad()
def computes_in_half(model: PreTrainedModel) -> bool:
    """Return whether a model runs in mixed precision; DeBERTa's attention mask uses a constant that overflows in it."""
    training = model.training
    ids = torch.full((1, 8), model.config.vocab_size - 1, device=model.device)
    try:
        with torch.autocast(model.device.type, torch.bfloat16):
            model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return False
    finally:
        model.train(training)
    return True
