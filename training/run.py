"""Fine-tuning from the first evaluation to the saved model."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlm_infer.errors import InputError, OutputExistsError
from mlm_infer.shared.checkpoint import max_length, open_checkpoint
from mlm_infer.shared.folders import REPORT, check_output, holds, move_into_place, writing

from .blocks import freeze_masks, make_blocks, mask_collator
from .config import TrainConfig
from .curve import save_curve
from .data import load_splits
from .hardware import choose_precision, computes_in_half
from .report import Evaluation, TrainReport, describe_machine
from .trainer import MaskedLMTrainer, QuietProgress

__all__ = ["fine_tune", "work_folder"]

logger = logging.getLogger(__name__)


def work_folder(output: Path) -> Path:
    """Return the temporary folder of a run, from which an interrupted run resumes."""
    return output.with_name(f".{output.name}.training")


def fine_tune(
    config: TrainConfig,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = False,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> TrainReport:
    """Fine-tune a masked language model, and write the model, its tokenizer, a report and a curve.

    Training draws new masks in every epoch; evaluation uses masks that are drawn once. The loss of a step is the mean
    over its masked tokens. The head runs at these positions only, which affects nothing but the speed.

    Args:
        config: The configuration of the run.
        overwrite: Replace an existing output folder once the new one is complete, provided that it is empty or contains
            only files that this package wrote, and does not overlap with an input.
        resume: Continue after the last finished epoch of an interrupted run with the same configuration.
        progress: Show progress bars on stderr.
        on_evaluation: Called after each evaluation, the one before training included.

    Returns:
        The report, which is also written to `config.output` as `training_report.json`, with `training_curve.png`.

    Raises:
        OutputExistsError: The output folder exists and `overwrite` is false, or it must not be replaced.
        ModelError: The checkpoint is not a usable masked language model.
        DataError: The data cannot be read or contains too little text.
        InputError: A value of the configuration is invalid for this model or machine.
    """
    output = config.output.expanduser()
    sources = [each for each in (config.model, config.data, config.validation_data) if each is not None]
    check_output(output, overwrite=overwrite, sources=sources)
    work = work_folder(output)
    _check_work(work, sources)
    checkpoint = _last_checkpoint(work) if resume else None
    precision = choose_precision(config.precision)

    transformers.set_seed(config.seed)
    model, tokenizer, missing = open_checkpoint(config.model)
    warnings = [_missing_weights(missing)] if missing else []
    if precision != "fp32" and not computes_in_half(model):
        if config.precision != "auto":
            raise InputError(
                f"precision is {config.precision!r}, in which {model.config.model_type} overflows; "
                "take --precision fp32"
            )
        warnings.append(f"{model.config.model_type} overflows in {precision}; training in fp32")
        precision = "fp32"
    for warning in warnings:
        logger.warning("%s", warning)
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = config.dropout
    longest = max_length(model, tokenizer.model_max_length)
    if config.block_size > longest:
        raise InputError(f"block_size is {config.block_size}, but {config.model} takes at most {longest} tokens")

    train_documents, validation_documents = load_splits(config)
    train = make_blocks(train_documents, tokenizer, config.block_size).sample(config.max_train_blocks, config.seed)
    validation = make_blocks(validation_documents, tokenizer, config.block_size).sample(
        config.max_validation_blocks, config.seed
    )
    frozen = freeze_masks(
        validation,
        tokenizer,
        mlm_probability=config.mlm_probability,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    if work.exists() and not resume:
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    # Identifies the folder as this package's until the report is written.
    (work / REPORT).touch()
    recorder = _Recorder(on_evaluation)
    trainer = MaskedLMTrainer(
        frozen=frozen,
        model=model,
        args=_arguments(
            config,
            work,
            precision,
            steps_an_epoch=-(-len(train) // config.batch_size),
            evaluate_first=checkpoint is None,
        ),
        train_dataset=train,
        eval_dataset=validation,
        # Training draws masks of its own, independent of those of the evaluation.
        data_collator=mask_collator(tokenizer, config.mlm_probability, config.seed + 1),
        processing_class=tokenizer,
        callbacks=[recorder],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.remove_callback(transformers.ProgressCallback)
    if progress:
        trainer.add_callback(QuietProgress())

    started = time.perf_counter()
    with writing(work):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    # Training may end between two evaluations, for example with a fractional number of epochs.
    if recorder.evaluations[-1].step != trainer.state.global_step:
        trainer.evaluate()

    report = TrainReport(
        config=config,
        evaluations=tuple(recorder.evaluations),
        train_curve=tuple((row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row),
        train_blocks=len(train),
        validation_blocks=len(validation),
        precision=precision,
        seconds=time.perf_counter() - started,
        machine=describe_machine(str(trainer.args.device)),
        warnings=tuple(warnings),
    )
    with writing(work):
        trainer.save_model()
    save_curve(report, work / "training_curve.png")
    (work / "training_args.bin").unlink(missing_ok=True)  # a pickle, which is not needed
    for leftover in work.glob("checkpoint-*"):
        shutil.rmtree(leftover)
    report.save(work)
    if config.push_to_hub:
        trainer.push_to_hub()
    move_into_place(work, output, overwrite=overwrite, sources=sources)
    return report


def _arguments(
    config: TrainConfig, work: Path, precision: str, *, steps_an_epoch: int, evaluate_first: bool
) -> TrainingArguments:
    # transformers stores the precision in this variable and would use it for the next run in this process.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no" if precision == "fp32" else precision
    updates = max(1, int(steps_an_epoch * config.epochs / config.gradient_accumulation_steps))
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_ratio=config.warmup_ratio,
        lr_scheduler_type=config.lr_scheduler,
        use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        seed=config.seed,
        eval_on_start=evaluate_first,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=max(1, updates // 50),
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        push_to_hub=config.push_to_hub,
        hub_model_id=config.hub_model_id or (config.output.name if config.push_to_hub else None),
    )


def _missing_weights(names: list[str]) -> str:
    return (
        f"{len(names)} weights are not in the checkpoint and started from random values "
        f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): its predictions mean nothing before training"
    )


def _check_work(work: Path, sources: Sequence[str]) -> None:
    """Reject a temporary folder that this package did not create, or that contains an input."""
    if not os.path.lexists(work):
        return
    if not work.is_dir() or (any(work.iterdir()) and not (work / REPORT).is_file()):
        raise OutputExistsError(f"{work} was not left by mlm-train, which writes there first; name another --output")
    for source in sources:
        if holds(work, Path(source).expanduser()):
            raise OutputExistsError(f"{source} is read and lies in {work}, which this run clears; copy it elsewhere")


def _last_checkpoint(work: Path) -> Path:
    found = sorted(filter(_complete, work.glob("checkpoint-*")), key=lambda path: int(path.name.rpartition("-")[2]))
    if not found:
        raise InputError(f"there is nothing to resume: {work} holds no finished epoch; start without --resume")
    return found[-1]


def _complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint is complete: the Trainer writes its state last, so a kill leaves it out."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


class _Recorder(TrainerCallback):
    """Converts the Trainer's log to evaluations, including those before a run was resumed."""

    def __init__(self, on_evaluation: Callable[[Evaluation], None] | None) -> None:
        self.evaluations: list[Evaluation] = []
        self._on_evaluation = on_evaluation

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_rest: object
    ) -> None:
        known = len(self.evaluations)
        self.evaluations = _evaluations(state.log_history, args.num_train_epochs)
        if self._on_evaluation is not None:
            for each in self.evaluations[max(known, len(self.evaluations) - 1) :]:
                self._on_evaluation(each)


def _evaluations(log: list[dict[str, float]], epochs: float) -> list[Evaluation]:
    found: list[Evaluation] = []
    losses: list[float] = []
    for row in log:
        if "loss" in row:
            losses.append(row["loss"])
        if "eval_loss" not in row:
            continue
        epoch = row.get("epoch") or 0.0
        step = int(row["step"])
        when = "before" if step == 0 else f"epoch {epoch:g}" if epoch < epochs else "end"
        train_loss = sum(losses) / len(losses) if losses else None
        found.append(Evaluation(when, epoch, step, row["eval_loss"], int(row["eval_masked_tokens"]), train_loss))
        losses = []
    return found
