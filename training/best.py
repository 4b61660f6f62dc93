"""Keeps the weights of the best evaluation, and ends a run that no longer gets better."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["BestKeeper", "best_step", "evaluations_since_best", "load_best"]


def best_step(log: Sequence[dict[str, Any]]) -> int | None:
    """Return the step of the lowest validation loss in a Trainer's log, the one before training left out.

    Args:
        log: Its `log_history`.
    """
    losses = _losses(log)
    return min(losses, key=lambda step: losses[step], default=None)


def evaluations_since_best(log: Sequence[dict[str, Any]]) -> int:
    """Return how many evaluations followed that of the lowest validation loss.

    Args:
        log: The `log_history` of a Trainer.
    """
    best = best_step(log)
    return sum(step > best for step in _losses(log)) if best is not None else 0


def load_best(model: PreTrainedModel, work: Path, step: int) -> None:
    """Give a model the weights that were kept at a step.

    Args:
        model: The model.
        work: The folder of the run.
        step: The step.
    """
    weights = type(model).from_pretrained(_folder(work, step))
    model.load_state_dict(weights.state_dict())


class BestKeeper(TrainerCallback):
    """Saves the weights at each evaluation that is the best so far.

    Those that were the best when the last checkpoint was written stay until the next one: a run that is resumed there
    with more epochs may find no better ones.

    Args:
        patience: Ends the run after so many evaluations that are not the best; None never does.
        of_checkpoint: The best step of the checkpoint that the run goes on from.
    """

    def __init__(self, patience: int | None, of_checkpoint: int | None) -> None:
        self._patience, self._of_checkpoint = patience, of_checkpoint

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_rest: object,
    ) -> None:
        """Save the weights if no evaluation was better, and look whether the run should end."""
        best = best_step(state.log_history)
        if best == state.global_step and model is not None and state.is_world_process_zero:
            folder = _folder(Path(args.output_dir), state.global_step)
            beside = folder.with_suffix(".part")
            model.save_pretrained(beside)
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
            _remove_others(Path(args.output_dir), {best, self._of_checkpoint})
        if self._patience is not None and evaluations_since_best(state.log_history) >= self._patience:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_rest: object) -> None:
        """Remove what the new checkpoint does not need."""
        self._of_checkpoint = best_step(state.log_history)
        if state.is_world_process_zero:
            _remove_others(Path(args.output_dir), {self._of_checkpoint})


def _losses(log: Sequence[dict[str, Any]]) -> dict[int, float]:
    return {int(row["step"]): row["eval_loss"] for row in log if "eval_loss" in row and row["step"] > 0}


def _folder(work: Path, step: int) -> Path:
    return work / f"best-{step}"


def _remove_others(work: Path, steps: set[int | None]) -> None:
    for path in work.glob("best-*"):
        if path not in {_folder(work, step) for step in steps if step is not None}:
            shutil.rmtree(path, ignore_errors=True)
