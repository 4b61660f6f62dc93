"""How well a model predicts masked tokens: loss and accuracy on fixed masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import PartialState
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from .masked_forward import MaskedForward
from .masks import IGNORED, MaskedBatch
from .processes import sum_over_processes
from .stopping import StoppedError, StopRequest

__all__ = ["MaskedScores", "score_masks"]


@dataclass(frozen=True, slots=True)
class MaskedScores:
    """What an evaluation measures.

    Attributes:
        loss: Mean negative log-likelihood over all masked tokens, in nats. A mean of batch means would weight tokens
            unequally.
        masked_tokens: Their number.
        top1: Share of them that the model finds most likely.
        top5: Share of them that are among its five most likely tokens.
    """

    loss: float
    masked_tokens: int
    top1: float
    top5: float


@torch.no_grad()
def score_masks(
    model: PreTrainedModel,
    batches: Sequence[MaskedBatch],
    *,
    way: MaskedForward | None = None,
    request: StopRequest | None = None,
) -> MaskedScores:
    """Evaluate a model on fixed masks, in fp32 and without dropout; all processes share the batches.

    Args:
        model: The model; its mode is restored.
        batches: Batches from `freeze_masks`.
        way: How to compute the logits; None finds the best way for this model.
        request: Ends the evaluation when made.

    Raises:
        StoppedError: The request was made.
    """
    device, training = model.device, model.training
    way = way or MaskedForward.best(model, batches)
    # The forward of the class: accelerate wraps that of the instance in autocast, and the measurement must be fp32.
    forward = partial(type(model).forward, model)
    state = PartialState()
    sums = [0.0] * 4
    model.eval()
    try:
        # Every process takes part in every round, so that all of them see a request in the same one.
        for start in range(0, len(batches), state.num_processes):
            if request is not None and request.made():
                raise StoppedError
            own = start + state.process_index
            for batch in batches[own : own + 1]:
                inputs = {
                    "input_ids": batch["input_ids"].to(device),
                    "attention_mask": batch["attention_mask"].to(device),
                }
                found = _sums(*way.logits(forward, inputs, batch["labels"].to(device)))
                sums = [one + other for one, other in zip(sums, found, strict=True)]
    finally:
        model.train(training)
    loss, count, first, five = sum_over_processes(sums)
    return MaskedScores(loss / count, int(count), first / count, five / count)


def _sums(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Return the sum of the losses, the number of labels, and how many labels are first and among the first five."""
    chosen = labels != IGNORED
    logits, labels = logits[chosen].float(), labels[chosen]
    own = logits.gather(1, labels[:, None])
    ids = torch.arange(logits.shape[1], device=logits.device)
    # Of equal logits the lower id comes first: a model without any preference is not right.
    rank = ((logits > own) | ((logits == own) & (ids < labels[:, None]))).sum(1)
    loss = cross_entropy(logits, labels, reduction="sum")
    return [loss.item(), float(len(labels)), float((rank < 1).sum()), float((rank < 5).sum())]
