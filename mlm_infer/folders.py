"""Folders that appear whole or not at all."""

import errno
import shutil
from pathlib import Path

from .errors import OutputExistsError

__all__ = ["check_output", "move_into_place"]


def check_output(target: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that exists, unless it may be replaced.

    Raises:
        OutputExistsError: It exists and `overwrite` is false.
    """
    if target.exists() and not overwrite:
        raise OutputExistsError(f"{target} exists; name another folder, or replace it with --force")


def move_into_place(folder: Path, target: Path, *, overwrite: bool) -> None:
    """Rename a finished folder to its place; one that is there leaves only when the new one is ready.

    Args:
        folder: The finished folder, on the same disk as the target.
        target: Its place.
        overwrite: Replace what is there.

    Raises:
        OutputExistsError: Another process put something there meanwhile.
    """
    check_output(target, overwrite=overwrite)
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            if old.exists():
                old.rename(target)
            raise
        raise OutputExistsError(f"another process wrote {target} meanwhile; name another folder") from error
    finally:
        shutil.rmtree(old, ignore_errors=True)
