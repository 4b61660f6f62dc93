"""Folders that appear whole or not at all."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import MlmInferError, OutputExistsError

__all__ = ["check_output", "move_into_place", "writing"]


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


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make an OSError with the folder's name of whatever is raised where a file cannot be written.

    A full disk does not say which; tokenizers, safetensors and torch raise exceptions of their own.

    Args:
        folder: What is being written.

    Raises:
        OSError: A file cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(folder)
        raise
    except MlmInferError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        reason = next(iter(str(error).strip().splitlines()), "")
        system = re.search(r"\(os error (\d+)\)", reason)
        if system is not None:
            raise OSError(int(system[1]), os.strerror(int(system[1])), str(folder)) from error
        if "PytorchStreamWriter" in reason:
            raise OSError(errno.EIO, reason, str(folder)) from error
        raise
