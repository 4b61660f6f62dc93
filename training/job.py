"""A fine-tuning run, stage by stage: open the model, prepare the text, train, write what came of it."""

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import transformers
from accelerate import PartialState
from transformers import TrainerState

from mlm_infer.errors import InputError, MlmInferError, TrainingError
from mlm_infer.shared.checkpoint import max_length, open_checkpoint
from mlm_infer.shared.command import message_of
from mlm_infer.shared.folders import REPORT, move_into_place, writing
from mlm_infer.shared.memory import is_out_of_memory

from .arguments import check_hardware, make_arguments
from .batch_size import fitting_batch_size
from .blocks import Blocks, make_blocks, make_encoder
from .card import find_licences
from .checkpoints import (
    RESULT,
    CheckpointKeeper,
    check_same_run,
    fingerprint,
    is_finished,
    last_checkpoint,
    remove_unfinished,
)
from .checks import check_schedule, check_tracker
from .config import TrainConfig
from .data import load_splits
from .dropout import set_dropout
from .evaluations import Recorder
from .from_scratch import new_model
from .hardware import choose_precision, computes_in_half
from .hub import Repository
from .masked_forward import MaskedForward
from .masks import MaskedBatch, MaskedBlocks, MaskRule, freeze_masks
from .prompts import PromptFiller, fills_of
from .report import DocumentCounts, Evaluation, TrainReport, describe_machine, thin
from .stopping import StopRequest
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

    Attributes:
        model: The model.
        precision: Precision of the training.
        counts: Numbers of documents, once the text is prepared.

    Raises:
        ModelError, DataError, InputError: As for `fine_tune`.
    """

    def __init__(self, config: TrainConfig, work: Path, checkpoint: Path | None) -> None:
        self._config, self._work, self._checkpoint = config, work, checkpoint
        self._processes = PartialState()
        self._warnings: list[str] = []
        # Asked for before anything is loaded: a device or schedule that is not there is said at once.
        self.precision = choose_precision(config.precision)
        check_hardware(config)
        check_schedule(config.lr_scheduler, config.scheduler_options)
        check_tracker(config.report_to)
        self._splits = None
        if config.from_scratch:
            with self._processes.main_process_first():
                self._splits = load_splits(config)
        # Random weights of a head that the checkpoint lacks must be the same when the run is resumed.
        transformers.set_seed(config.seed)
        if self._splits is not None:
            self.model, self._tokenizer = new_model(config.model, self._splits.train)
        else:
            self.model, self._tokenizer, missing = open_checkpoint(config.model)
            if missing:
                self._warn(_missing_weights(missing))
        self._fit_precision()
        if config.dropout is not None:
            set_dropout(self.model, config.dropout)
        self._rule = MaskRule.of(self._tokenizer, config.mlm_probability, config.mask_share, config.random_share)
        make_encoder(self._tokenizer, whole_words=config.whole_words)  # raises if words are not known
        self._prompts = PromptFiller(config.prompts, self.model, self._tokenizer)
        longest = max_length(self.model, self._tokenizer.model_max_length)
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
        hub = self._open_hub(output)
        # The first process fills the cache, the others read it.
        with self._processes.main_process_first():
            train, validation, frozen = self.prepare_text()
        blocks = {"training text": train, "validation text": validation}
        mark = fingerprint(self._config, self.model, self._tokenizer, blocks, self._processes.num_processes)
        if self._checkpoint is not None:
            check_same_run(self._checkpoint, mark)
        with writing(self._work):
            self._make_work_folder()
        recorder, bar = Recorder(on_evaluation), QuietProgress()
        started = time.perf_counter()
        try:
            with StopRequest() as request, writing(self._work):
                trainer = self.make_trainer(train, frozen, request)
                trainer.add_callback(self._prompts)
                trainer.add_callback(recorder)
                trainer.add_callback(CheckpointKeeper(mark))
                if progress and self._processes.is_main_process:
                    trainer.add_callback(bar)
                self._train(trainer, recorder)
                report = self._report(trainer, recorder, len(train), len(validation), time.perf_counter() - started)
                if self._processes.is_main_process:
                    result = self._write(trainer, report)
                    move_into_place(result, output, overwrite=overwrite, sources=sources)
                    shutil.rmtree(self._work)
                self._processes.wait_for_everyone()
        except (TrainingError, OSError, RuntimeError, MemoryError) as error:
            told = self._with_checkpoint(error)
            if told is None:
                raise
            raise told from error
        finally:
            bar.close()
        if hub is not None:
            hub.upload(output)
        return report

    def _open_hub(self, output: Path) -> Repository | None:
        if not (self._config.push_to_hub and self._processes.is_main_process):
            return None
        return Repository(self._config.hub_model_id or output.name)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings so far."""
        return tuple(dict.fromkeys(self._warnings))

    def _warn(self, text: str) -> None:
        """Tell now, and again in the report."""
        self._warnings.append(text)
        if self._processes.is_main_process:
            logger.warning("%s", text)

    def _fit_precision(self) -> None:
        """Train in fp32 what overflows in half precision, unless that was asked for by name."""
        if self.precision == "fp32" or computes_in_half(self.model):
            return
        architecture = self.model.config.model_type
        if self._config.precision != "auto":
            raise InputError(
                f"precision is {self._config.precision!r}, in which {architecture} overflows; take --precision fp32"
            )
        self._warn(f"{architecture} overflows in {self.precision}; training in fp32")
        self.precision = "fp32"

    def prepare_text(self) -> tuple[Blocks, Blocks, Sequence[MaskedBatch]]:
        """Return blocks to train on, blocks to validate on, and the latter with their masks."""
        config = self._config
        splits = self._splits or load_splits(config)
        if splits.repeated and not config.deduplicate:
            self._warn(
                f"{splits.repeated} of {len(splits.validation)} validation documents are training documents, too, "
                "which lowers the perplexity; --deduplicate leaves them out"
            )
        self.counts = DocumentCounts(
            len(splits.train), len(splits.validation), splits.empty, splits.repeated, splits.unused_splits
        )
        train, validation = (
            make_blocks(
                documents,
                self._tokenizer,
                config.block_size,
                per_line=config.per_line,
                whole_words=config.whole_words,
                workers=config.workers,
            )
            for documents in (splits.train, splits.validation)
        )
        validation = validation.sample(config.max_validation_blocks, config.seed)
        frozen = freeze_masks(validation, self._rule, batch_size=config.batch_size, seed=config.seed)
        return train.sample(config.max_train_blocks, config.seed), validation, frozen

    def _make_work_folder(self) -> None:
        self._processes.wait_for_everyone()
        if self._processes.is_main_process:
            if self._work.exists() and self._checkpoint is None:
                shutil.rmtree(self._work)
            self._work.mkdir(parents=True, exist_ok=True)
            # Identifies the folder as this package's until the report is written.
            (self._work / REPORT).touch()
            remove_unfinished(self._work)
        self._processes.wait_for_everyone()

    def make_trainer(
        self, train: Blocks, frozen: Sequence[MaskedBatch], request: StopRequest, config: TrainConfig | None = None
    ) -> MaskedLMTrainer:
        """Return the trainer of this run, or with other settings one for a measurement."""
        config = config or self._config
        self.model.to(self._processes.device)
        way = self.choose_way(frozen)
        batch_size = config.batch_size
        if config.auto_batch_size:
            batch_size = fitting_batch_size(
                self.model,
                batch_size,
                config.block_size,
                share=config.mlm_probability,
                precision=self.precision,
                way=way,
            )
        blocks_per_update = config.batch_size * config.gradient_accumulation_steps * self._processes.num_processes
        trainer = MaskedLMTrainer(
            frozen=frozen,
            warmup_ratio=config.warmup_ratio,
            way=way,
            request=request,
            model=self.model,
            args=make_arguments(
                config,
                self.model,
                self._work,
                self.precision,
                batch_size=batch_size,
                updates_per_epoch=-(-len(train) // blocks_per_update),
                evaluate_first=self._checkpoint is None,
            ),
            train_dataset=MaskedBlocks(train, self._rule, config.seed),
            eval_dataset=frozen,
            data_collator=self._rule.collate,
            processing_class=self._tokenizer,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.remove_callback(transformers.ProgressCallback)
        return trainer

    def choose_way(self, frozen: Sequence[MaskedBatch]) -> MaskedForward:
        """Return how to compute the logits, and warn if that is slower than it might be."""
        config = self._config
        if config.full_head:
            return MaskedForward(self.model, head=False)
        # Checkpointing calls the layer again during the backward pass, and compilation knows no modes of torch.
        whole_layer = config.gradient_checkpointing or config.compile
        way = MaskedForward.best(self.model, frozen, last_layer=not whole_layer, precision=self.precision)
        if not way.head:
            self._warn(
                f"the head of {self.model.config.model_type} cannot run at the masked positions only; "
                "it runs at all of them, which takes more time and memory"
            )
        return way

    def _train(self, trainer: MaskedLMTrainer, recorder: Recorder) -> None:
        """Train to the end, or raise KeyboardInterrupt once the step at which that was requested is saved."""
        checkpoint = self._checkpoint
        if checkpoint is not None and is_finished(checkpoint, self._config):
            # The Trainer would make one more step.
            weights, _, _ = open_checkpoint(str(checkpoint))
            self.model.load_state_dict(weights.state_dict())
            trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            recorder.read(trainer.state)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.stop.stopped:
            raise KeyboardInterrupt(
                f"stopped after step {trainer.state.global_step}, which is saved; "
                "the same command with --resume continues from there"
            )
        # Training may end between two evaluations, for example with a fractional number of epochs.
        if not recorder.evaluations or recorder.evaluations[-1].step != trainer.state.global_step:
            trainer.evaluate()

    def _report(
        self, trainer: MaskedLMTrainer, recorder: Recorder, train_blocks: int, validation_blocks: int, seconds: float
    ) -> TrainReport:
        losses = [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]
        return TrainReport(
            config=self._config,
            evaluations=tuple(recorder.evaluations),
            train_curve=thin(losses),
            fills=fills_of(trainer.state.log_history),
            documents=self.counts,
            train_blocks=train_blocks,
            validation_blocks=validation_blocks,
            licences=find_licences(self._config),
            precision=self.precision,
            seconds=seconds,
            machine=describe_machine(str(trainer.args.device)) | {"processes": str(self._processes.num_processes)},
            warnings=self.warnings,
        )

    def _write(self, trainer: MaskedLMTrainer, report: TrainReport) -> Path:
        """Write model, tokenizer and reports to a folder beside the checkpoints, and return it."""
        result = self._work / RESULT
        trainer.args.output_dir = str(result)
        trainer.save_model()
        (result / "training_args.bin").unlink(missing_ok=True)  # a pickle, which is not needed
        if (self._work / "runs").is_dir():  # of TensorBoard
            (self._work / "runs").rename(result / "runs")
        save_summaries(report, result)
        return result

    def _with_checkpoint(self, error: Exception) -> TrainingError | None:
        """Return an error that ended a run in one line that names the last checkpoint; None if it is none of these."""
        config = self._config
        if self._processes.is_main_process:
            remove_unfinished(self._work)
        if isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error):
            text = (
                f"out of memory with batches of {config.batch_size} blocks of {config.block_size} tokens; take "
                "--auto-batch-size, a smaller --batch-size with more --gradient-accumulation-steps, or "
                "--gradient-checkpointing"
            )
        elif isinstance(error, TrainingError) or (isinstance(error, OSError) and not isinstance(error, MlmInferError)):
            text = message_of(error)
        else:
            return None
        checkpoint = last_checkpoint(self._work)
        if checkpoint is not None:
            text += f"; the last good checkpoint is {checkpoint}"
            text += ", from which --resume continues" if isinstance(error, OSError) else ""
        return TrainingError(text)


def _missing_weights(names: list[str]) -> str:
    return (
        f"{len(names)} weights are not in the checkpoint and started from random values "
        f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): its predictions mean nothing before training"
    )
