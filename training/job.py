"""A fine-tuning run, stage by stage: open the model, prepare the text, train, write what came of it."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from transformers import TrainingArguments

from mlm_infer.errors import InputError
from mlm_infer.shared.checkpoint import max_length, open_checkpoint
from mlm_infer.shared.folders import REPORT, move_into_place, writing

from .blocks import Blocks, make_blocks
from .card import find_licences
from .checks import check_schedule, check_tracker
from .config import TrainConfig
from .data import load_splits
from .dropout import set_dropout
from .evaluations import Recorder
from .hardware import choose_precision, computes_in_half
from .hub import Repository
from .masks import MaskedBatch, MaskedBlocks, MaskRule, freeze_masks
from .prompts import PromptFiller, fills_of
from .report import DocumentCounts, Evaluation, TrainReport, describe_machine
from .summaries import save_summaries
from .trainer import MaskedLMTrainer, QuietProgress

__all__ = ["TrainingJob"]

logger = logging.getLogger(__name__)


class TrainingJob:
    """One run. The stages are called in the order in which they stand here.

    Args:
        config: What to train, on what, and how.
        work: The folder that is written until the run is complete.
        checkpoint: Where an interrupted run goes on; None starts anew.

    Raises:
        ModelError, DataError, InputError: As for `fine_tune`.
    """

    def __init__(self, config: TrainConfig, work: Path, checkpoint: Path | None) -> None:
        self._config, self._work, self._checkpoint = config, work, checkpoint
        self._warnings: list[str] = []
        # Asked for before anything is loaded: a device that is not there is said at once.
        self._precision = choose_precision(config.precision)
        check_schedule(config.lr_scheduler, config.scheduler_options)
        check_tracker(config.report_to)
        transformers.set_seed(config.seed)
        self._model, self._tokenizer, missing = open_checkpoint(config.model)
        if missing:
            self._warn(_missing_weights(missing))
        self._fit_precision()
        if config.dropout is not None:
            set_dropout(self._model, config.dropout)
        self._rule = MaskRule.of(self._tokenizer, config.mlm_probability)
        self._prompts = [PromptFiller(config.prompts, self._model, self._tokenizer)] if config.prompts else []
        longest = max_length(self._model, self._tokenizer.model_max_length)
        if config.block_size > longest:
            raise InputError(f"block_size is {config.block_size}, but {config.model} takes at most {longest} tokens")

    def run(
        self,
        *,
        progress: bool,
        on_evaluation: Callable[[Evaluation], None] | None,
        output: Path,
        overwrite: bool,
        sources: Sequence[str],
    ) -> TrainReport:
        """Train, and move the result to its place."""
        config = self._config
        hub = Repository(config.hub_model_id or output.name) if config.push_to_hub else None
        train, validation, frozen = self._prepare_text()
        self._make_work_folder()
        recorder = Recorder(on_evaluation)
        trainer = self._make_trainer(train, frozen, recorder, progress=progress)
        started = time.perf_counter()
        with writing(self._work):
            trainer.train(resume_from_checkpoint=str(self._checkpoint) if self._checkpoint else None)
        # Training may end between two evaluations, for example with a fractional number of epochs.
        if recorder.evaluations[-1].step != trainer.state.global_step:
            trainer.evaluate()
        report = TrainReport(
            config=config,
            evaluations=tuple(recorder.evaluations),
            train_curve=tuple((row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row),
            fills=fills_of(trainer.state.log_history),
            documents=self._counts,
            train_blocks=len(train),
            validation_blocks=len(validation),
            licences=find_licences(config),
            precision=self._precision,
            seconds=time.perf_counter() - started,
            machine=describe_machine(str(trainer.args.device)),
            warnings=tuple(self._warnings),
        )
        self._write(trainer, report)
        move_into_place(self._work, output, overwrite=overwrite, sources=sources)
        if hub is not None:
            hub.upload(output)
        return report

    def _warn(self, text: str) -> None:
        """Tell now, and again in the report."""
        self._warnings.append(text)
        logger.warning("%s", text)

    def _fit_precision(self) -> None:
        """Train in fp32 what overflows in half precision, unless that was asked for by name."""
        if self._precision == "fp32" or computes_in_half(self._model):
            return
        architecture = self._model.config.model_type
        if self._config.precision != "auto":
            raise InputError(
                f"precision is {self._config.precision!r}, in which {architecture} overflows; take --precision fp32"
            )
        self._warn(f"{architecture} overflows in {self._precision}; training in fp32")
        self._precision = "fp32"

    def _prepare_text(self) -> tuple[Blocks, Blocks, list[MaskedBatch]]:
        """Return blocks to train on, blocks to validate on, and the latter with their masks."""
        config = self._config
        splits = load_splits(config)
        if splits.repeated and not config.deduplicate:
            self._warn(
                f"{splits.repeated} of {len(splits.validation)} validation documents are training documents, too, "
                "which lowers the perplexity; --deduplicate leaves them out"
            )
        self._counts = DocumentCounts(
            len(splits.train), len(splits.validation), splits.empty, splits.repeated, splits.unused_splits
        )
        train = make_blocks(splits.train, self._tokenizer, config.block_size)
        validation = make_blocks(splits.validation, self._tokenizer, config.block_size).sample(
            config.max_validation_blocks, config.seed
        )
        frozen = freeze_masks(validation, self._rule, batch_size=config.batch_size, seed=config.seed)
        return train.sample(config.max_train_blocks, config.seed), validation, frozen

    def _make_work_folder(self) -> None:
        if self._work.exists() and self._checkpoint is None:
            shutil.rmtree(self._work)
        self._work.mkdir(parents=True, exist_ok=True)
        # Identifies the folder as this package's until the report is written.
        (self._work / REPORT).touch()

    def _make_trainer(
        self, train: Blocks, frozen: list[MaskedBatch], recorder: Recorder, *, progress: bool
    ) -> MaskedLMTrainer:
        config = self._config
        trainer = MaskedLMTrainer(
            frozen=frozen,
            warmup_ratio=config.warmup_ratio,
            model=self._model,
            args=_arguments(
                config,
                self._work,
                self._precision,
                steps_an_epoch=-(-len(train) // config.batch_size),
                evaluate_first=self._checkpoint is None,
            ),
            train_dataset=MaskedBlocks(train, self._rule, config.seed),
            eval_dataset=frozen,
            data_collator=self._rule.collate,
            processing_class=self._tokenizer,
            callbacks=[recorder, *self._prompts],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.remove_callback(transformers.ProgressCallback)
        if progress:
            trainer.add_callback(QuietProgress())
        return trainer

    def _write(self, trainer: MaskedLMTrainer, report: TrainReport) -> None:
        """Write model, tokenizer and reports, and remove what only a run in progress needs."""
        with writing(self._work):
            trainer.save_model()
        (self._work / "training_args.bin").unlink(missing_ok=True)  # a pickle, which is not needed
        for leftover in self._work.glob("checkpoint-*"):
            shutil.rmtree(leftover)
        save_summaries(report, self._work)


def _arguments(
    config: TrainConfig, work: Path, precision: str, *, steps_an_epoch: int, evaluate_first: bool
) -> TrainingArguments:
    # transformers stores the precision in this variable and would use it for the next run in this process.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no" if precision == "fp32" else precision
    updates = config.max_steps or max(1, int(steps_an_epoch * config.epochs / config.gradient_accumulation_steps))
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.lr_scheduler,
        lr_scheduler_kwargs=config.scheduler_options,
        max_grad_norm=config.max_grad_norm,
        use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        seed=config.seed,
        eval_on_start=evaluate_first,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        remove_unused_columns=False,
        logging_steps=max(1, updates // 50),
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=config.report_to,
    )


def _missing_weights(names: list[str]) -> str:
    return (
        f"{len(names)} weights are not in the checkpoint and started from random values "
        f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): its predictions mean nothing before training"
    )
