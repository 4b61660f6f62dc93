"""Tells whether `torch.compile` makes a run faster."""

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .masked_forward import MaskedForward
from .masks import MaskedBatch

__all__ = ["CompileCheck", "seconds_of_a_pass"]

_SKIPPED, _COUNTED = 4, 8
"""The first updates compile; those after them are counted."""


def seconds_of_a_pass(model: PreTrainedModel, batch: MaskedBatch, way: MaskedForward, precision: str) -> float:
    """Return the time of a pass forwards and backwards without compilation; nothing of it stays.

    Args:
        model: The model, on its device.
        batch: What to compute.
        way: How to compute the logits.
        precision: fp32, bf16 or fp16.
    """
    device, training = model.device, model.training
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    ids, mask, labels = (batch[name].to(device) for name in ("input_ids", "attention_mask", "labels"))
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    times = []
    model.train()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for _ in range(3):
                started = time.perf_counter()
                with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
                    logits, wanted = way.logits(model, {"input_ids": ids, "attention_mask": mask}, labels)
                    loss = cross_entropy(logits.float(), wanted)
                loss.backward()
                _wait(device)
                times.append(time.perf_counter() - started)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
        model.load_state_dict(buffers, strict=False)
    return min(times)


class CompileCheck(TrainerCallback):
    """Times updates of the compiled model, and warns once if they are not faster than without compilation.

    Args:
        plain: Seconds of a pass without compilation.
        warn: Receives the warning.
    """

    def __init__(self, plain: float, warn: Callable[[str], None]) -> None:
        self._plain, self._warn = plain, warn
        self._started = 0.0
        self._times: list[float] = []

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_rest: object
    ) -> None:
        """Start the clock."""
        _wait(args.device)
        self._started = time.perf_counter()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_rest: object
    ) -> None:
        """Stop the clock, and judge when there are times enough."""
        _wait(args.device)
        self._times.append((time.perf_counter() - self._started) / args.gradient_accumulation_steps)
        if len(self._times) == _SKIPPED + _COUNTED:
            compiled = statistics.median(self._times[_SKIPPED:])
            if compiled >= self._plain:
                self._warn(
                    f"--compile does not help here: a batch takes {compiled:.3g} s with it and {self._plain:.3g} s "
                    "without; leave it out"
                )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_rest: object
    ) -> None:
        """Warn of a run that is over before compilation can pay."""
        if len(self._times) < _SKIPPED + _COUNTED:
            self._warn(f"--compile does not help a run of {len(self._times)} updates, which compile; leave it out")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
