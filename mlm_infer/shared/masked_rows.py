"""Computes the vocabulary head at the masked positions only: the same loss and gradients for less work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from .memory import is_out_of_memory

__all__ = ["head_at_rows", "masked_logits", "rows_are_exact"]


@contextmanager
def head_at_rows(model: PreTrainedModel, rows: torch.Tensor) -> Iterator[None]:
    """Pass only selected rows of the last hidden state to the head, as a single text with that many tokens.

    Args:
        model: A masked language model whose head follows `base_model`.
        rows: Flat indices into [batch * length].
    """

    def keep_rows(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        # With a batch axis of one, so that the head sees the shape that it expects.
        hidden = output[0]
        chosen = hidden.reshape(-1, hidden.shape[-1])[rows].unsqueeze(0)
        if isinstance(output, tuple):
            return (chosen, *output[1:])
        output.last_hidden_state = chosen
        return output

    # A hook instead of a copy of the head's code: it works for every architecture whose head follows the encoder.
    handle = model.base_model.register_forward_hook(keep_rows)
    try:
        yield
    finally:
        handle.remove()


def masked_logits(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    rows: torch.Tensor,
    *,
    fast: bool,
) -> torch.Tensor:
    """Return the fp32 logits at flat rows of a batch, [rows, vocabulary].

    Args:
        model: The model.
        input_ids: [batch, length].
        attention_mask: [batch, length].
        rows: Flat indices into [batch * length].
        fast: Run the head at those rows only; see `rows_are_exact`.
    """
    # The forward of the class: accelerate wraps that of the instance in autocast, and the measurement must be fp32.
    forward = type(model).forward
    if not fast:
        logits: torch.Tensor = forward(model, input_ids=input_ids, attention_mask=attention_mask).logits
        return logits.reshape(-1, logits.shape[-1])[rows]
    with head_at_rows(model, rows):
        chosen: torch.Tensor = forward(model, input_ids=input_ids, attention_mask=attention_mask).logits
        return chosen[0]


@torch.no_grad()
def rows_are_exact(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> bool:
    """Return whether `head_at_rows` reproduces this model's logits, by trying it on a batch."""
    # A head that mixes positions, or a model whose head does not follow `base_model`, fails this test.
    training = model.training
    model.eval()
    # Every third row: a selection that a head which mixes neighbours cannot get right by chance.
    rows = torch.arange(0, input_ids.numel(), 3, device=input_ids.device)
    try:
        full = masked_logits(model, input_ids, attention_mask, rows, fast=False)
        fast = masked_logits(model, input_ids, attention_mask, rows, fast=True)
        return full.shape == fast.shape and torch.allclose(full, fast, rtol=1e-4, atol=1e-4)
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    finally:
        model.train(training)
