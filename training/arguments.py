"""The settings of a run as the transformers Trainer takes them; here its major versions differ."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from mlm_infer.errors import DependencyError, InputError, first_line

from .config import TrainConfig

__all__ = ["check_hardware", "make_arguments"]


def check_hardware(config: TrainConfig) -> None:
    """Reject tf32 where there is none.

    Raises:
        InputError: No GPU computes in it.
    """
    if config.tf32 and not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)):
        raise InputError("tf32 needs an NVIDIA GPU of the Ampere generation or later; leave --tf32 out")


def make_arguments(
    config: TrainConfig,
    model: PreTrainedModel,
    work: Path,
    precision: str,
    *,
    batch_size: int,
    updates_per_epoch: int,
    evaluate_first: bool,
) -> TrainingArguments:
    """Return the arguments of the Trainer. Long because every one that differs from its default is set here.

    Args:
        config: The settings.
        model: What is trained.
        work: The folder for checkpoints.
        precision: fp32, bf16 or fp16.
        batch_size: Blocks that a device takes at once; accumulation makes up the rest of an update.
        updates_per_epoch: Updates of the weights in an epoch.
        evaluate_first: Evaluate before training, too.

    Raises:
        InputError: The optimizer does not exist, or the model has no gradient checkpointing.
        DependencyError: The optimizer needs a package that is not installed.
    """
    if config.optimizer not in [each.value for each in OptimizerNames]:
        names = ", ".join(each.value for each in OptimizerNames)
        raise InputError(f"optimizer is {config.optimizer!r}; it must be one of {names} (--optimizer)")
    if config.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise InputError(f"{model.config.model_type} has no gradient checkpointing; leave --gradient-checkpointing out")
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=config.batch_size * config.gradient_accumulation_steps // batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.lr_scheduler,
        lr_scheduler_kwargs=config.scheduler_options,
        max_grad_norm=config.max_grad_norm,
        optim=config.optimizer,
        use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        # None leaves the setting of the process as it is.
        tf32=True if config.tf32 else None,
        torch_compile=config.compile,
        seed=config.seed,
        # The loss of an update is the mean over the masked tokens of all processes and accumulated batches.
        average_tokens_across_devices=True,
        # All that happens after a step happens at its end, so that a checkpoint holds everything up to its step.
        eval_strategy="steps",
        eval_steps=config.eval_steps or updates_per_epoch,
        eval_on_start=evaluate_first,
        save_strategy="steps",
        save_steps=config.save_steps or updates_per_epoch,
        # Each loss is needed, to stop at one that is not finite, and for a curve that an interruption does not change.
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_num_workers=config.loader_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=config.report_to,
        **_checkpointing(config),
    )
    # With several GPUs and no launcher the Trainer would take nn.DataParallel, which splits batches behind our loss.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    except (ImportError, ValueError) as error:
        raise DependencyError(f"cannot use optimizer {config.optimizer!r} here: {first_line(error)}") from error
    return arguments


def _checkpointing(config: TrainConfig) -> dict[str, Any]:
    if not config.gradient_checkpointing:
        return {}
    # transformers 5 renamed it.
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    prefix = "activation" if "activation_checkpointing" in names else "gradient"
    return {f"{prefix}_checkpointing": True, f"{prefix}_checkpointing_kwargs": {"use_reentrant": False}}
