"""The transformers Trainer, with the head at masked positions only and an exact evaluation."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from mlm_infer.shared.masked_rows import head_at_rows, masked_logits, rows_are_exact

from .masks import IGNORED, BlockOrder, MaskedBatch

__all__ = ["MaskedLMTrainer", "QuietProgress", "evaluate_loss"]


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
            self.training_bar.set_postfix({name.removeprefix("eval_"): f"{value:.4g}" for name, value in shown.items()})


@torch.no_grad()
def evaluate_loss(model: PreTrainedModel, batches: Sequence[MaskedBatch]) -> tuple[float, int]:
    """Evaluate a model on fixed masks, in fp32 and without dropout.

    Args:
        model: The model; its mode is restored.
        batches: Batches from `freeze_masks`.

    Returns:
        The mean negative log-likelihood in nats over all masked tokens, and their number. Perplexity is the exponential
        of the mean. A mean of batch means would weight tokens unequally.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    fast = rows_are_exact(model, batches[0]["input_ids"][:2].to(device), batches[0]["attention_mask"][:2].to(device))
    total, count = 0.0, 0
    for batch in batches:
        labels = batch["labels"].reshape(-1)
        rows = (labels != IGNORED).nonzero().squeeze(1)
        if not len(rows):
            continue
        logits = masked_logits(
            model, batch["input_ids"].to(device), batch["attention_mask"].to(device), rows.to(device), fast=fast
        )
        total += cross_entropy(logits.float(), labels[rows].to(device), reduction="sum").item()
        count += len(rows)
    model.train(training)
    return total / count, count


class MaskedLMTrainer(Trainer):
    """A Trainer that computes the head at masked positions only and evaluates on fixed masks.

    Args:
        frozen: What to evaluate on.
        warmup_ratio: Share of the steps over which the learning rate rises.
        **options: Those of `Trainer`; `train_dataset` is a `MaskedBlocks`.
    """

    def __init__(self, *, frozen: Sequence[MaskedBatch], warmup_ratio: float, **options: Any) -> None:
        super().__init__(**options)
        self.frozen = frozen
        self._warmup_ratio = warmup_ratio
        first = frozen[0]
        # nn.DataParallel replicates the model with its hook, which would apply the same rows to every replica.
        self._fast = self.args.n_gpu <= 1 and rows_are_exact(
            self.model,
            first["input_ids"][:2].to(self.args.device),
            first["attention_mask"][:2].to(self.args.device),
        )

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
            persistent_workers=self.args.dataloader_persistent_workers,
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
        """Return the mean cross-entropy over the masked tokens of the step."""
        if return_outputs or not self._fast:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"].reshape(-1)
        rows = (labels != IGNORED).nonzero().squeeze(1)
        with head_at_rows(self.accelerator.unwrap_model(model), rows):
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[0]
        # With gradient accumulation the Trainer passes the number of masked tokens in the whole update, so that every
        # token has the same weight.
        count = num_items_in_batch if num_items_in_batch is not None else max(len(rows), 1)
        return cross_entropy(logits.float(), labels[rows], reduction="sum") / count

    def evaluate(self, *_args: Any, metric_key_prefix: str = "eval", **_rest: Any) -> dict[str, float]:
        """Evaluate on the fixed masks; the Trainer's own mean of batch losses would weight tokens unequally."""
        loss, count = evaluate_loss(self.accelerator.unwrap_model(self.model), self.frozen)
        metrics = {
            f"{metric_key_prefix}_loss": loss,
            f"{metric_key_prefix}_perplexity": math.exp(loss),
            f"{metric_key_prefix}_masked_tokens": float(count),
        }
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
