"""The temporary folder of an export, next to its output."""

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
    """Provide a temporary folder next to the target, removed in any case; also remove those of killed processes."""
    prefix = f".{target.name}.export-"
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f"{glob.escape(prefix)}*"):
        if _abandoned(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    # A lock, not a process id: it ends with this process and is visible to other containers on the same file system.
    lock = FileLock(work / _LOCK)
    try:
        with lock, writing(target):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    """Return whether the process that created a temporary folder has ended."""
    lock = folder / _LOCK
    try:
        if not lock.exists():
            # A new folder has no lock yet, hence the delay. A folder with files but no lock is not of an export.
            return not any(folder.iterdir()) and time.time() - folder.stat().st_mtime > 60
        with FileLock(lock, timeout=0):
            return True
    except (Timeout, OSError):
        return False
