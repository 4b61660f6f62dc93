"""The folder that a run writes to until it is complete, and what an interrupted run left there."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from mlm_infer.errors import InputError, OutputExistsError
from mlm_infer.shared.folders import REPORT, holds

__all__ = ["check_work", "last_checkpoint", "work_folder"]


def work_folder(output: Path) -> Path:
    """Return the temporary folder of a run, from which an interrupted run resumes."""
    return output.with_name(f".{output.name}.training")


def check_work(work: Path, sources: Sequence[str]) -> None:
    """Reject a temporary folder that this package did not create, or that contains an input.

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


def last_checkpoint(work: Path) -> Path:
    """Return the newest complete checkpoint of an interrupted run.

    Raises:
        InputError: There is none.
    """
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
