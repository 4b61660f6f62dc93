"""A pass through the model that computes no more than the logits at masked positions."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from mlm_infer.shared.masked_rows import head_at_rows
from mlm_infer.shared.memory import is_out_of_memory

from .last_layer import LastLayer, LayerChangedError
from .masks import IGNORED, MaskedBatch

__all__ = ["MaskedForward"]

logger = logging.getLogger(__name__)


class MaskedForward:
    """Computes logits at masked positions.

    Args:
        model: The model, without wrappers.
        head: Run the head at these positions only.
        last_layer: Run most of the last layer there only, too.

    Attributes:
        warn: Receives a warning if the last layer turns out to need all positions; None makes that an error.
    """

    def __init__(self, model: PreTrainedModel, *, head: bool, last_layer: bool = False) -> None:
        self._model, self.head = model, head
        self._last = LastLayer(model) if last_layer else None
        self.warn: Callable[[str], None] | None = None

    @classmethod
    def best(
        cls,
        model: PreTrainedModel,
        batches: Sequence[MaskedBatch],
        *,
        last_layer: bool = True,
        precision: str = "fp32",
    ) -> "MaskedForward":
        """Return the way that computes least and is exact for a model, which is tried on two texts.

        Args:
            model: The model.
            batches: Where to take the texts from.
            last_layer: Whether the last layer may run at masked positions only.
            precision: Of the training: fp32, bf16 or fp16.
        """
        full = cls(model, head=False)
        for whole_layer in (False, True) if last_layer else (True,):
            try:
                way = cls(model, head=True, last_layer=not whole_layer)
                if way._equals(full, batches[0]):
                    way._try_training(batches[0], precision)
                    way.warn = logger.warning
                    return way
            # The ways in which a model shows that it is built otherwise.
            except (AttributeError, AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
                if is_out_of_memory(error):
                    raise
        return full

    @property
    def last_layer(self) -> bool:
        """Whether most of the last layer runs at masked positions only."""
        return self._last is not None

    def logits(
        self, forward: Callable[..., Any], inputs: Mapping[str, torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits, [masked, vocabulary], and the labels there, [masked].

        Without any label this is one position whose label is ignored: every weight then has a gradient.

        Args:
            forward: The model or what is wrapped around it.
            inputs: Its inputs.
            labels: [batch, length].
        """
        flat = labels.reshape(-1)
        rows = (flat != IGNORED).nonzero().squeeze(1)
        if not len(rows):
            rows = flat.new_zeros(1)
        if not self.head:
            return forward(**inputs).logits.flatten(0, 1)[rows], flat[rows]
        try:
            with ExitStack() as stack:
                chosen = rows
                if self._last is not None:
                    positions, chosen = _slots(rows, labels.shape)
                    stack.enter_context(self._last.at(positions))
                stack.enter_context(head_at_rows(self._model, chosen))
                return forward(**inputs).logits[0], flat[rows]
        except LayerChangedError:
            if self.warn is None:
                raise
            self._last = None
            self.warn("the last layer does not run the same operations each time, so it runs at all positions")
            return self.logits(forward, inputs, labels)

    @torch.no_grad()
    def _equals(self, full: "MaskedForward", batch: MaskedBatch) -> bool:
        """Return whether the logits are those of the full computation, for texts of changing length."""
        model = self._model
        ids, attention = batch["input_ids"][:2].to(model.device), batch["attention_mask"][:2].to(model.device)
        training = model.training
        model.eval()
        try:
            # The last one shows what a layer keeps from one call to the next, such as tables for a length.
            for length in (ids.shape[1], -(-ids.shape[1] // 2), ids.shape[1]):
                inputs = {"input_ids": ids[:, :length], "attention_mask": attention[:, :length]}
                # Every third position, and in the second text fewer: texts have different numbers of masks.
                labels = torch.full_like(inputs["input_ids"], IGNORED)
                labels[:, ::3] = 0
                labels[1:, : length // 2] = IGNORED
                forward = partial(type(model).forward, model)
                found, expected = (way.logits(forward, inputs, labels)[0] for way in (self, full))
                if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
                    return False
        finally:
            model.train(training)
        return True

    @torch.no_grad()
    def _try_training(self, batch: MaskedBatch, precision: str) -> None:
        """Run once as in training, where a layer may use other operations than in evaluation, and others in bf16.

        Raises:
            RuntimeError: The last layer cannot run at masked positions there.
        """
        model = self._model
        device, training = model.device, model.training
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        ids, attention, labels = (batch[name][:2].to(device) for name in ("input_ids", "attention_mask", "labels"))
        padded = torch.ones_like(attention)
        padded[-1, -1] = 0
        forward = partial(type(model).forward, model)
        # I-BERT keeps statistics of its activations in training.
        buffers = {name: each.clone() for name, each in model.named_buffers()}
        model.train()
        try:
            # The random numbers of dropout must not depend on whether this was tried.
            with (
                torch.random.fork_rng([device] if device.type == "cuda" else []),
                torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None),
            ):
                # Attention leaves out a mask of ones, and is then another operation.
                for mask in (attention, padded, torch.ones_like(attention)):
                    self.logits(forward, {"input_ids": ids, "attention_mask": mask}, labels)
        finally:
            model.train(training)
            model.load_state_dict(buffers, strict=False)


def _slots(rows: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions of flat rows in each text, [batch, slots], and where the rows are in it, flat."""
    texts, positions = rows // shape[1], rows % shape[1]
    counts = torch.bincount(texts, minlength=shape[0])
    slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[texts]
    width = int(counts.max())
    table = rows.new_zeros(shape[0], width)
    table[texts, slots] = positions
    return table, texts * width + slots
