"""Finds the largest batch that a device holds."""

from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from mlm_infer.errors import TrainingError
from mlm_infer.shared.memory import is_out_of_memory

from .masked_forward import MaskedForward
from .masks import IGNORED
from .processes import any_process

__all__ = ["fitting_batch_size"]


def fitting_batch_size(
    model: PreTrainedModel, batch_size: int, block_size: int, *, share: float, precision: str, way: MaskedForward
) -> int:
    """Return the largest divisor of a batch size at which a pass forwards and backwards fits into memory.

    A divisor, so that accumulation gives the same updates. All processes must call this together.

    Args:
        model: The model, on its device; its gradients are cleared.
        batch_size: The batch size that is wanted.
        block_size: Tokens per block.
        share: Share of masked tokens.
        precision: fp32, bf16 or fp16.
        way: How to compute the logits.

    Raises:
        TrainingError: Not even one block fits.
    """
    for size in _divisors(batch_size):
        if not any_process(not _fits(model, size, block_size, share, precision, way)):
            return size
    raise TrainingError(
        f"one block of {block_size} tokens does not fit into memory; take a smaller --block-size, or "
        "--gradient-checkpointing"
    )


def _divisors(number: int) -> Iterator[int]:
    return (size for size in range(number, 0, -1) if number % size == 0)


def _fits(
    model: PreTrainedModel, batch_size: int, block_size: int, share: float, precision: str, way: MaskedForward
) -> bool:
    device = model.device
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    training = model.training
    try:
        # What the optimizer will hold: two numbers for each weight.
        reserved = [torch.empty_like(weight) for weight in model.parameters() for _ in range(2)]
        ids = torch.full((batch_size, block_size), model.config.vocab_size - 1, device=device)
        labels = torch.full_like(ids, IGNORED)
        labels[:, :: max(1, int(1 / share))] = 0
        model.train()
        with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
            logits, wanted = way.logits(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels)
            loss = cross_entropy(logits.float(), wanted)
        loss.backward()
        del reserved
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True
