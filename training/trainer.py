"""The transformers Trainer, with the head at masked positions only, an exact loss and an exact evaluation."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from mlm_infer.errors import TrainingError

from .masked_forward import MaskedForward
from .masks import IGNORED, BlockOrder, MaskedBatch
from .processes import sum_over_processes
from .report import exponential
from .scores import score_masks
from .stopping import StoppedError, StopRequest, StopWhenAsked

__all__ = ["MaskedLMTrainer", "QuietProgress"]


class QuietProgress(ProgressCallback):
    """The Trainer's progress bar, which shows the loss itself instead of printing a dictionary per line."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_rest: Any,
    ) -> None:
        """Show the newest loss and perplexity at the end of the bar."""
        shown = {name: logs[name] for name in ("loss", "eval_perplexity") if logs and name in logs}
        if self.training_bar is not None and shown:
            texts = {name.removeprefix("eval_"): f"{value:.4g}" for name, value in shown.items()}
            # Every step has a loss; the bar itself decides how often it is drawn.
            self.training_bar.set_postfix(texts, refresh="eval_perplexity" in shown)

    def close(self) -> None:
        """End the line of a bar that stands half-way."""
        if self.training_bar is not None:
            self.training_bar.close()


class MaskedLMTrainer(Trainer):
    """A Trainer that computes the head at masked positions only and evaluates on fixed masks.

    Args:
        frozen: What to evaluate on.
        warmup_ratio: Share of the steps over which the learning rate rises.
        way: How to compute the logits; None finds the best way for this model.
        request: Ends the training when made.
        **options: Those of `Trainer`; `train_dataset` is a `MaskedBlocks`.

    Attributes:
        stop: Tells whether the training was stopped.
        way: How the logits are computed.
    """

    loss_is_scaled_for_ga = True
    """For transformers 5: `compute_loss` already divides by the masked tokens of the whole update."""

    def __init__(
        self,
        *,
        frozen: Sequence[MaskedBatch],
        warmup_ratio: float = 0.0,
        way: MaskedForward | None = None,
        request: StopRequest | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        # For transformers 4 this says the same, and for both that the masked tokens of an update are counted.
        self.model_accepts_loss_kwargs = True
        self.frozen = frozen
        self._warmup_ratio = warmup_ratio
        self._request = request or StopRequest()
        self._update_loss = 0.0
        self.stop = StopWhenAsked(self._request)
        self.add_callback(self.stop)
        self.way = way or MaskedForward.best(self.model, frozen)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the learning rate's schedule; transformers 5 has no share of warm-up steps any more."""
        self.args.warmup_steps = math.ceil(self._warmup_ratio * num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of an epoch, whose order and masks depend on seed and epoch only."""
        processes, batch_size = self.args.world_size, self._train_batch_size
        multiple = processes * batch_size if processes > 1 else 1
        # At the start of an epoch the state holds its number as a whole one, and more in the middle of a resumed one.
        order = BlockOrder(
            len(self.train_dataset), self.args.seed, lambda: int(self.state.epoch or 0), multiple=multiple
        )
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset,
            batch_size=batch_size,
            sampler=order,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            persistent_workers=self.args.dataloader_num_workers > 0,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the share of a batch in the mean cross-entropy over the masked tokens of the whole update."""
        if return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rest = {name: value for name, value in inputs.items() if name != "labels"}
        logits, labels = self.way.logits(model, rest, inputs["labels"])
        count = num_items_in_batch if num_items_in_batch is not None else (labels != IGNORED).sum()
        # In an update of few tokens none may be masked: its loss is 0 then, and not 0 divided by 0.
        loss = cross_entropy(logits.float(), labels, reduction="sum", ignore_index=IGNORED) / max(int(count), 1)
        # The gradients of several processes are averaged, and what each adds is a share of the same mean.
        return loss * self.accelerator.num_processes if num_items_in_batch is not None else loss

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        """Add up the loss of an update, which transformers 4 would round to four digits."""
        loss: torch.Tensor = super().training_step(*args, **options)
        self._update_loss += float(loss)
        return loss

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """Log what was measured, and stop if a number is not finite: the weights are spoilt then.

        Raises:
            TrainingError: A loss or gradient norm is not finite.
        """
        if "loss" in logs:
            logs["loss"] = sum_over_processes([self._update_loss])[0] / self.args.world_size
            self._update_loss = 0.0
        # With fp16 a gradient overflows from time to time; the scaler skips that update and lowers its scale.
        skipped = "loss" in logs and self.accelerator.optimizer_step_was_skipped
        for name in ("loss", "grad_norm", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)) and not (skipped and name == "grad_norm"):
                what = {"grad_norm": "norm of the gradients", "eval_loss": "validation loss"}.get(name, name)
                raise TrainingError(
                    f"the {what} is {logs[name]} after step {self.state.global_step}; a lower --learning-rate, "
                    "more --warmup-ratio or --precision fp32 may help"
                )
        super().log(logs, *rest)

    def evaluate(self, *_args: Any, metric_key_prefix: str = "eval", **_rest: Any) -> dict[str, float]:
        """Evaluate on the fixed masks; the Trainer's own mean of batch losses would weight tokens unequally."""
        model = self.accelerator.unwrap_model(self.model)
        try:
            scores = score_masks(model, self.frozen, way=self.way, request=self._request)
            metrics = {
                f"{metric_key_prefix}_loss": scores.loss,
                f"{metric_key_prefix}_perplexity": exponential(scores.loss),
                f"{metric_key_prefix}_masked_tokens": float(scores.masked_tokens),
                f"{metric_key_prefix}_top1": scores.top1,
                f"{metric_key_prefix}_top5": scores.top5,
            }
            self.log(metrics)
            self.control: TrainerControl = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
        except StoppedError:
            if not self.state.global_step:
                raise KeyboardInterrupt("stopped before the first step") from None
            # The step is saved, and its evaluation follows when the run is resumed.
            self.control.should_evaluate = False
            self.stop.stopped = self.control.should_save = self.control.should_training_stop = True
            return {}
        return metrics
