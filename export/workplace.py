"""The scratch folder of an export, beside the place of its bundle."""

import glob
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mlm_infer.shared.folders import writing

__all__ = ["workplace"]

_LOCK = "lock"


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """Give a scratch folder beside the target, gone afterwards whatever happens; sweep what a kill left."""
    prefix = f".{target.name}.export-"
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f"{glob.escape(prefix)}*"):
        if _abandoned(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    # Held as long as this process lives, and seen by others on the same disk, in other containers too.
    lock = FileLock(work / _LOCK)
    try:
        with lock, writing(target):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    """Tell whether the process that made a scratch folder is gone."""
    lock = folder / _LOCK
    try:
        if not lock.exists():
            # A process that has just made it takes the lock next; what holds something without one is somebody else's.
            return not any(folder.iterdir()) and time.time() - folder.stat().st_mtime > 60
        with FileLock(lock, timeout=0):
            return True
    except (Timeout, OSError):
        return False
