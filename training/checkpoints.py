"""The folder that a run writes to until it is complete, its checkpoints, and which runs may continue from them."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from mlm_infer.errors import InputError, OutputExistsError
from mlm_infer.shared.folders import REPORT, holds

from .best import evaluations_since_best
from .blocks import Blocks
from .config import TrainConfig

__all__ = [
    "RESULT",
    "CheckpointKeeper",
    "check_same_run",
    "check_work",
    "fingerprint",
    "is_finished",
    "lacks_evaluation",
    "last_checkpoint",
    "read_state",
    "remove_unfinished",
    "work_folder",
    "write_state",
]

RESULT = "result"
"""Folder of the finished model, beside the checkpoints until it is moved to its place."""

_STATE = "trainer_state.json"
_MARK = "mlm_train.json"
"""Written last into a checkpoint, so a checkpoint without it is not complete. Contains the fingerprint."""
_FREE = (
    "model",
    "data",
    "validation_data",
    "output",
    "epochs",
    "loader_workers",
    "workers",
    "report_to",
    "push_to_hub",
    "hub_model_id",
)
"""Settings that may change on resume: the content of model and data is compared, not their names."""


def work_folder(output: Path) -> Path:
    """Return the temporary folder of a run, from which an interrupted run resumes."""
    return output.with_name(f".{output.name}.training")


def check_work(work: Path, sources: Sequence[str], *, replace: bool) -> None:
    """Reject a temporary folder that this package did not create, or that contains what must not be lost.

    Args:
        work: The folder.
        sources: Inputs of the run.
        replace: Whether checkpoints of an interrupted run may be removed.

    Raises:
        OutputExistsError: It is such a folder.
    """
    if not os.path.lexists(work):
        return
    if not work.is_dir() or (any(work.iterdir()) and not (work / REPORT).is_file()):
        raise OutputExistsError(f"{work} was not left by mlm-train, which writes there first; name another --output")
    for source in sources:
        if holds(work, Path(source).expanduser()):
            raise OutputExistsError(f"{source} is read and lies in {work}, which this run clears; copy it elsewhere")
    checkpoint = last_checkpoint(work)
    if checkpoint is not None and not replace:
        raise OutputExistsError(
            f"{checkpoint} is of an interrupted run; continue it with --resume, or discard it with --force"
        )


def last_checkpoint(work: Path) -> Path | None:
    """Return the newest complete checkpoint of an interrupted run, or None."""
    found = (path.parent for path in work.glob(f"checkpoint-*/{_MARK}"))
    return max(found, key=_step, default=None)


def read_state(checkpoint: Path) -> TrainerState:
    """Return the state of the Trainer in a checkpoint, its log included."""
    return TrainerState.load_from_json(str(checkpoint / _STATE))


def write_state(checkpoint: Path, state: TrainerState) -> None:
    """Replace the state in a checkpoint, of which one is there at any moment."""
    beside = checkpoint / f"{_STATE}.part"
    state.save_to_json(str(beside))
    beside.rename(checkpoint / _STATE)


def lacks_evaluation(state: TrainerState, every: int) -> bool:
    """Return whether a request to stop cut the evaluation of the last step short.

    Args:
        state: The state in a checkpoint.
        every: Steps between evaluations.
    """
    done = any("eval_loss" in row and row["step"] == state.global_step for row in state.log_history)
    return state.global_step % every == 0 and not done


def is_finished(checkpoint: Path, config: TrainConfig) -> bool:
    """Return whether a checkpoint holds the last step of a run."""
    state = read_state(checkpoint)
    if config.early_stopping is not None and evaluations_since_best(state.log_history) >= config.early_stopping:
        return True
    # The checkpoint knows the last step of the epochs that it was written for.
    known = config.max_steps is not None or _read_mark(checkpoint)["epochs"] == config.epochs
    return bool(known and state.global_step >= state.max_steps)


def remove_unfinished(work: Path) -> None:
    """Remove checkpoints and results that are not complete, for example because the disk is full."""
    shutil.rmtree(work / RESULT, ignore_errors=True)
    for path in (*work.glob("checkpoint-*"), *work.glob("best-*.part")):
        if not (path / _MARK).exists():
            shutil.rmtree(path, ignore_errors=True)


def fingerprint(
    config: TrainConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: dict[str, Blocks],
    processes: int,
) -> dict[str, Any]:
    """Return what must be equal for a run to continue as if it had not been interrupted.

    Args:
        config: The settings.
        model: The model before training.
        tokenizer: Its tokenizer.
        blocks: The blocks by purpose.
        processes: Number of processes.
    """
    settings = {name: value for name, value in config.to_dict().items() if name not in _FREE}
    weights = model.state_dict()
    digests = {
        "weights of the model": _digest(weights[name].cpu().numpy() for name in sorted(weights)),
        "vocabulary": _digest([np.array(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))]),
    }
    digests |= {name: each.digest() for name, each in blocks.items()}
    return {"epochs": config.epochs, "settings": settings | {"processes": processes}, "digests": digests}


def check_same_run(checkpoint: Path, now: dict[str, Any]) -> None:
    """Reject a checkpoint of a run with other settings, another model or other data; `epochs` may have risen.

    Raises:
        InputError: The runs differ; the message names each difference.
    """
    then = _read_mark(checkpoint)
    names = then["settings"].keys() | now["settings"].keys()
    found = [
        f"{name} was {then['settings'].get(name)!r} and is {now['settings'].get(name)!r}"
        for name in sorted(names)
        if then["settings"].get(name) != now["settings"].get(name)
    ]
    if now["epochs"] < then["epochs"]:
        found.append(f"epochs was {then['epochs']!r} and is {now['epochs']!r}, which may only rise")
    found += [f"the {name} changed" for name, digest in now["digests"].items() if then["digests"].get(name) != digest]
    if found:
        raise InputError(
            f"cannot resume {checkpoint}: {'; '.join(found)}. Repeat that run's command, or start anew with --force"
        )


class CheckpointKeeper(TrainerCallback):
    """Marks a checkpoint as complete once every process has written its part, and only then removes the one before.

    Args:
        mark: The fingerprint of the run.
    """

    def __init__(self, mark: dict[str, Any]) -> None:
        self._mark = mark

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_rest: object) -> None:
        """Mark the checkpoint that was just written."""
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        new = Path(args.output_dir, f"checkpoint-{state.global_step}")
        (new / "training_args.bin").unlink(missing_ok=True)  # a pickle, which is not needed
        beside = new / f"{_MARK}.part"
        beside.write_text(json.dumps(self._mark), encoding="utf-8")
        beside.rename(new / _MARK)
        for old in Path(args.output_dir).glob("checkpoint-*"):
            if old != new:
                # Without its mark a folder that is removed half-way is no checkpoint.
                (old / _MARK).unlink(missing_ok=True)
                shutil.rmtree(old)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _read_mark(checkpoint: Path) -> dict[str, Any]:
    mark: dict[str, Any] = json.loads((checkpoint / _MARK).read_text(encoding="utf-8"))
    return mark


def _digest(arrays: Iterable[NDArray[Any]]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        # With their shapes, because arrays of other shapes could give the same bytes.
        found.update(str(array.shape).encode() + array.tobytes())
    return found.hexdigest()
