"""What a run would do, take and need, estimated from a few of its own steps: `mlm-train --dry-run`."""

import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from mlm_infer.shared.folders import check_output
from mlm_infer.shared.tables import format_table

from .config import TrainConfig
from .job import PreparedText, TrainingJob
from .masks import MaskedBatch
from .process_state import restored
from .processes import together
from .report import DocumentCounts
from .scores import score_masks
from .stopping import StopRequest

__all__ = ["Plan", "plan_run"]

_BUDGET = 5.0
"""Seconds for the steps of one measurement, of which there are at most three; it has at least two steps."""
_LONGEST = 24.0
"""Seconds that two whole updates may take to be measured as they are."""
_FEW = 4
_MOST_STEPS = 8
_EVALUATED_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do, take and need.

    Attributes:
        model: Name and architecture.
        parameters: Number of weights.
        documents: Numbers of documents.
        train_blocks: Blocks to train on.
        validation_blocks: Blocks to validate on.
        updates: Weight updates.
        evaluations: Evaluations, before training and at the end included.
        precision: Precision of the training.
        seconds: Estimated time of training, evaluations, best weights and checkpoints.
        memory_bytes: Estimated peak memory of the process, or on a GPU of its device; None where it cannot be measured.
        disk_bytes: Size of the result and of the largest number of checkpoints at a time.
        measured_batch: Blocks in the largest step that was measured; from fewer than `batch_size` the rest is
            extrapolated.
        warnings: Warnings.
    """

    model: str
    parameters: int
    documents: DocumentCounts
    train_blocks: int
    validation_blocks: int
    updates: int
    evaluations: int
    precision: str
    seconds: float
    memory_bytes: int | None
    disk_bytes: int
    measured_batch: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a dictionary that can be written as JSON."""
        return asdict(self)

    def table(self) -> str:
        """Return the plan as a table."""
        documents = self.documents
        memory = "-" if self.memory_bytes is None else f"{self.memory_bytes / 1e9:.2f} GB"
        rows = [
            ["model", f"{self.model}, {self.parameters / 1e6:.1f} million weights, {self.precision}"],
            ["training", f"{documents.train} documents, {self.train_blocks} blocks, {self.updates} updates"],
            ["validation", f"{documents.validation} documents, {self.validation_blocks} blocks"],
            ["left out", f"{documents.empty} empty documents; splits: {', '.join(documents.unused_splits) or 'none'}"],
            ["evaluations", f"{self.evaluations}"],
            ["estimated time", _duration(self.seconds)],
            ["estimated peak memory", memory],
            ["disk", f"{self.disk_bytes / 1e9:.2f} GB"],
        ]
        return format_table(["what", "how much"], rows)


@dataclass(frozen=True, slots=True)
class _Measured:
    """Seconds of an update and peak memory with batches of some size."""

    blocks: int
    seconds: float
    memory: int | None


class _StepClock(TrainerCallback):
    """Notes when steps end, and stops after the budget; the first step, which is slower, only starts the clock."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_rest: object
    ) -> None:
        """Note the time."""
        self._ends.append(time.perf_counter())
        if len(self._ends) > 1 and self._ends[-1] - self._ends[0] > _BUDGET:
            control.should_training_stop = True

    @property
    def seconds(self) -> float:
        """Mean time of a step."""
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)


def plan_run(config: TrainConfig, *, overwrite: bool = False) -> Plan:
    """Prepare a run, measure a few of its steps, and write nothing.

    Args:
        config: The configuration of the run.
        overwrite: As for `fine_tune`, whose checks of the output are made, too.

    Raises:
        OutputExistsError, ModelError, DataError, InputError: As for `fine_tune`.
    """
    sources = [each for each in (config.model, config.data, config.validation_data) if each is not None]
    check_output(config.output.expanduser(), overwrite=overwrite, sources=sources)
    alone = replace(config, push_to_hub=False, report_to="none", prompts=())
    with restored(), together(), tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(alone, Path(folder), None)
        text = job.prepare_text()
        step = _measure_update(job, alone, text)
        saving, size = _measure_saving(job, Path(folder))
        evaluation = _measure_evaluation(job, text.frozen) * len(text.validation)
    blocks_per_update = config.batch_size * config.gradient_accumulation_steps
    per_epoch = -(-len(text.train) // blocks_per_update)
    updates = config.max_steps or max(1, round(per_epoch * config.epochs))
    evaluations = 1 + -(-updates // (config.eval_steps or per_epoch))
    # Weights and two numbers of AdamW for each of them.
    saves = updates // (config.save_steps or per_epoch)
    return Plan(
        model=f"{config.model} ({job.model.config.model_type})",
        parameters=job.model.num_parameters(),
        documents=text.counts,
        train_blocks=len(text.train),
        validation_blocks=len(text.validation),
        updates=updates,
        evaluations=evaluations,
        precision=job.precision,
        seconds=updates * step.seconds + evaluations * (evaluation + saving) + 3 * saves * saving,
        memory_bytes=step.memory,
        # The old checkpoint goes once the new one is complete; so do the best weights at that time.
        disk_bytes=size * (2 + 3 * min(saves, 2)),
        measured_batch=step.blocks,
        warnings=job.warnings,
    )


def _measure_update(job: TrainingJob, config: TrainConfig, text: PreparedText) -> _Measured:
    """Measure whole updates if that takes seconds, else smaller ones, and extrapolate."""
    rounds, wanted = config.gradient_accumulation_steps, config.batch_size
    single = replace(config, gradient_accumulation_steps=1)
    low = _measure(job, replace(single, batch_size=1), text)
    if rounds * wanted == 1:
        return low
    high = _measure(job, replace(single, batch_size=min(max(wanted, 2), _FEW)), text)
    # The first step is not counted, so there are at least two of them.
    if 2 * rounds * _at(low, high, wanted).seconds < _LONGEST:
        return _measure(job, config, text)
    per_block = high.seconds / high.blocks
    size = min(wanted, int(_BUDGET / per_block))
    if size > high.blocks:
        low, high = high, _measure(job, replace(single, batch_size=size), text)
    found = _at(low, high, wanted)
    return replace(found, blocks=high.blocks, seconds=rounds * found.seconds)


def _at(low: _Measured, high: _Measured, blocks: int) -> _Measured:
    """Extrapolate two measurements to another batch size."""
    share = (blocks - high.blocks) / (high.blocks - low.blocks)
    memory = high.memory
    if low.memory is not None and high.memory is not None:
        memory = high.memory + int(share * (high.memory - low.memory))
    # More blocks never take less time, whatever else the machine did during the measurements.
    return _Measured(blocks, high.seconds + share * max(0.0, high.seconds - low.seconds), memory)


def _measure(job: TrainingJob, config: TrainConfig, text: PreparedText) -> _Measured:
    small = replace(config, max_steps=_MOST_STEPS)
    trainer = job.make_trainer(text, StopRequest(), small)
    trainer.args.eval_on_start = False
    trainer.args.eval_strategy = trainer.args.save_strategy = IntervalStrategy.NO
    clock = _StepClock()
    trainer.add_callback(clock)
    trainer.train()
    memory = _peak_memory(trainer.args.device)
    # Its optimizer would be in memory beside that of the next measurement.
    del trainer
    gc.collect()
    return _Measured(config.batch_size, clock.seconds, memory)


def _measure_evaluation(job: TrainingJob, frozen: Sequence[MaskedBatch]) -> float:
    """Return the seconds that the evaluation of a block takes."""
    first: MaskedBatch = {
        "input_ids": frozen[0]["input_ids"][:_EVALUATED_BLOCKS],
        "attention_mask": frozen[0]["attention_mask"][:_EVALUATED_BLOCKS],
        "labels": frozen[0]["labels"][:_EVALUATED_BLOCKS],
    }
    way = job.choose_way(frozen)
    started = time.perf_counter()
    score_masks(job.model, [first], way=way)
    return (time.perf_counter() - started) / len(first["labels"])


def _measure_saving(job: TrainingJob, folder: Path) -> tuple[float, int]:
    """Return the seconds that saving the weights takes, and their size in bytes."""
    started = time.perf_counter()
    job.model.save_pretrained(folder / "weights")
    seconds = time.perf_counter() - started
    return seconds, sum(path.stat().st_size for path in (folder / "weights").rglob("*"))


def _peak_memory(device: torch.device) -> int | None:
    """Return the most bytes of memory that this process had, or on a GPU those of its device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
