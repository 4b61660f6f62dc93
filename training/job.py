"""What a fine-tuning run needs: the model, the text as blocks, and the trainer."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import transformers
from accelerate import PartialState

from mlm_infer.errors import InputError
from mlm_infer.shared.checkpoint import max_length, open_checkpoint

from .arguments import check_hardware, make_arguments
from .batch_size import fitting_batch_size
from .blocks import Blocks, make_blocks, make_encoder
from .checks import check_schedule, check_tracker
from .compiled import CompileCheck, seconds_of_a_pass
from .config import TrainConfig
from .data import load_splits
from .dropout import set_dropout
from .from_scratch import new_model
from .hardware import choose_precision, computes_in_half
from .masked_forward import MaskedForward
from .masks import MaskedBatch, MaskedBlocks, MaskRule, freeze_masks
from .prompts import PromptFiller
from .report import DocumentCounts
from .stopping import StopRequest
from .trainer import MaskedLMTrainer

__all__ = ["PreparedText", "TrainingJob"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedText:
    """The text of a run.

    Attributes:
        train: Blocks to train on.
        validation: Blocks to validate on.
        frozen: The latter with their masks.
        counts: Numbers of documents.
    """

    train: Blocks
    validation: Blocks
    frozen: Sequence[MaskedBatch]
    counts: DocumentCounts


class TrainingJob:
    """Opens the model, prepares the text, and makes the trainer.

    Args:
        config: What to train, on what, and how.
        work: The folder that is written until the run is complete.
        checkpoint: Where an interrupted run goes on; None starts anew.

    Attributes:
        config: As given.
        model: The model.
        tokenizer: Its tokenizer.
        rule: How to mask.
        prompts: Fills the sentences of the user.
        processes: The processes of the launch.
        precision: Precision of the training.

    Raises:
        ModelError, DataError, InputError: As for `fine_tune`.
    """

    def __init__(self, config: TrainConfig, work: Path, checkpoint: Path | None) -> None:
        self.config, self._work, self._checkpoint = config, work, checkpoint
        self.processes = PartialState()
        self._warnings: list[str] = []
        # Asked for before anything is loaded: a device or schedule that is not there is said at once.
        self.precision = choose_precision(config.precision)
        check_hardware(config)
        check_schedule(config.lr_scheduler, config.scheduler_options)
        check_tracker(config.report_to)
        self._splits = None
        if config.from_scratch:
            with self.processes.main_process_first():
                self._splits = load_splits(config)
        # Random weights of a head that the checkpoint lacks must be the same when the run is resumed.
        transformers.set_seed(config.seed)
        if self._splits is not None:
            self.model, self.tokenizer = new_model(config.model, self._splits.train)
        else:
            self.model, self.tokenizer, missing = open_checkpoint(config.model)
            if missing:
                self.warn(_missing_weights(missing))
        self._fit_precision()
        if config.dropout is not None:
            set_dropout(self.model, config.dropout)
        self.rule = MaskRule.of(self.tokenizer, config.mlm_probability, config.mask_share, config.random_share)
        make_encoder(self.tokenizer, whole_words=config.whole_words)  # raises if words are not known
        self.prompts = PromptFiller(config.prompts, self.model, self.tokenizer)
        longest = max_length(self.model, self.tokenizer.model_max_length)
        if config.block_size > longest:
            raise InputError(f"block_size is {config.block_size}, but {config.model} takes at most {longest} tokens")

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings so far."""
        return tuple(dict.fromkeys(self._warnings))

    def warn(self, text: str) -> None:
        """Tell now, and again in the report."""
        self._warnings.append(text)
        if self.processes.is_main_process:
            logger.warning("%s", text)

    def _fit_precision(self) -> None:
        """Train in fp32 what overflows in half precision, unless that was asked for by name."""
        if self.precision == "fp32" or computes_in_half(self.model):
            return
        architecture = self.model.config.model_type
        if self.config.precision != "auto":
            raise InputError(
                f"precision is {self.config.precision!r}, in which {architecture} overflows; take --precision fp32"
            )
        self.warn(f"{architecture} overflows in {self.precision}; training in fp32")
        self.precision = "fp32"

    def prepare_text(self) -> PreparedText:
        """Load, split and tokenize the text, and cut it into blocks."""
        config = self.config
        splits = self._splits or load_splits(config)
        if splits.repeated and not config.deduplicate:
            self.warn(
                f"{splits.repeated} of {len(splits.validation)} validation documents are training documents, too, "
                "which lowers the perplexity; --deduplicate leaves them out"
            )
        counts = DocumentCounts(
            len(splits.train), len(splits.validation), splits.empty, splits.repeated, splits.unused_splits
        )
        train, validation = (
            make_blocks(
                documents,
                self.tokenizer,
                config.block_size,
                per_line=config.per_line,
                whole_words=config.whole_words,
                workers=config.workers,
            )
            for documents in (splits.train, splits.validation)
        )
        validation = validation.sample(config.max_validation_blocks, config.seed)
        frozen = freeze_masks(validation, self.rule, batch_size=config.batch_size, seed=config.seed)
        return PreparedText(train.sample(config.max_train_blocks, config.seed), validation, frozen, counts)

    def make_trainer(
        self, text: PreparedText, request: StopRequest, config: TrainConfig | None = None
    ) -> MaskedLMTrainer:
        """Return the trainer of this run, or with other settings one for a measurement."""
        config = config or self.config
        self.model.to(self.processes.device)
        way = self.choose_way(text.frozen)
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
        blocks_per_update = config.batch_size * config.gradient_accumulation_steps * self.processes.num_processes
        trainer = MaskedLMTrainer(
            frozen=text.frozen,
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
                updates_per_epoch=-(-len(text.train) // blocks_per_update),
                evaluate_first=self._checkpoint is None,
            ),
            train_dataset=MaskedBlocks(text.train, self.rule, config.seed),
            eval_dataset=text.frozen,
            data_collator=self.rule.collate,
            processing_class=self.tokenizer,
        )
        if config.compile:
            batch: MaskedBatch = text.frozen[0]
            share = batch_size / len(batch["labels"])
            plain = share * seconds_of_a_pass(self.model, batch, way, self.precision)
            trainer.add_callback(CompileCheck(plain, self.warn))
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.remove_callback(transformers.ProgressCallback)
        return trainer

    def choose_way(self, frozen: Sequence[MaskedBatch]) -> MaskedForward:
        """Return how to compute the logits, and warn if that is slower than it might be."""
        config = self.config
        if config.full_head:
            return MaskedForward(self.model, head=False)
        # Checkpointing calls the layer again during the backward pass, and compilation knows no modes of torch.
        whole_layer = config.gradient_checkpointing or config.compile
        way = MaskedForward.best(self.model, frozen, last_layer=not whole_layer, precision=self.precision)
        way.warn = self.warn
        if not way.head:
            self.warn(
                f"the head of {self.model.config.model_type} cannot run at the masked positions only; "
                "it runs at all of them, which takes more time and memory"
            )
        return way


def _missing_weights(names: list[str]) -> str:
    return (
        f"{len(names)} weights are not in the checkpoint and started from random values "
        f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): its predictions mean nothing before training"
    )
