"""Folders that appear whole or not at all, and replace nothing but what this package wrote."""

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlm_infer.bundle.manifest import MANIFEST
from mlm_infer.errors import MlmInferError, OutputExistsError, first_line

__all__ = ["REPORT", "check_output", "holds", "move_into_place", "writing"]

REPORT = "training_report.json"
"""What `mlm-train` writes into a folder; like a bundle's manifest it names the folder's files under `files`."""


Sources = Iterable[str | os.PathLike[str]]


def check_output(target: Path, *, overwrite: bool, sources: Sources = ()) -> None:
    """Refuse an output folder that is there, unless it may be replaced and is this package's own.

    Args:
        target: The output folder.
        overwrite: Replace what is there: an empty folder, or one that holds what `mlm-export` or `mlm-train` wrote
            and nothing else.
        sources: Files and folders that are read; names of nothing on this machine are left out.

    Raises:
        OutputExistsError: It is there and may not be replaced.
    """
    if target.name in ("", ".."):
        raise OutputExistsError(f"the output {target} has no name of its own; write the folder's name")
    for path in (target, _replaced(target)):
        why = _why_not(path) if os.path.lexists(path) else ""
        if why:
            raise OutputExistsError(f"{path} {why}")
    if not target.exists():
        return
    for source in (Path(each).expanduser() for each in sources):
        if holds(target, source) or holds(source, target):
            raise OutputExistsError(f"{target} and {source}, which is read, lie in one another; name another folder")
    if not overwrite:
        raise OutputExistsError(f"{target} exists; name another folder, or replace it with --force")


def holds(folder: Path, path: Path) -> bool:
    """Tell whether a folder is, or holds at any depth, a file or folder, whatever links and spellings lead there."""
    if not folder.exists() or not path.exists():
        return False
    real = path.resolve()
    return any(folder.samefile(each) for each in (real, *real.parents))


def move_into_place(folder: Path, target: Path, *, overwrite: bool, sources: Sources = ()) -> None:
    """Rename a finished folder to its place; one that is there leaves only when the new one is ready.

    Args:
        folder: The finished folder, on the same disk as the target.
        target: Its place.
        overwrite: As for `check_output`, which is asked again.
        sources: As for `check_output`.

    Raises:
        OutputExistsError: Something is there that may not be replaced, perhaps put there meanwhile.
    """
    check_output(target, overwrite=overwrite, sources=sources)
    old = _replaced(target)
    _remove(old)
    try:
        if target.exists():
            target.rename(old)
            why = _why_not(old)
            if why:
                old.rename(target)
                raise OutputExistsError(f"{target} {why}")
        folder.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise OutputExistsError(f"another process wrote {target} meanwhile; name another folder") from error
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        _remove(old)


def _replaced(target: Path) -> Path:
    """Return where a folder goes that is being replaced; a kill may leave it there."""
    return target.with_name(f".{target.name}.replaced")


def _why_not(path: Path) -> str:
    """Say why what is there may not be replaced; nothing where it may."""
    if path.is_symlink():
        return "is a link; name the folder that it leads to"
    if not path.is_dir():
        return "is a file; name another folder"
    own = _own_names(path)
    other = sorted(each.name for each in path.iterdir() if each.name not in own or not _is_file(each))
    if not other:
        return ""
    shown = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
    return f"holds what mlm-infer did not write ({shown}); name another folder, or remove that first"


def _is_file(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()


def _own_names(folder: Path) -> set[str]:
    """Return the names of the files that a bundle or a training says are its own."""
    for mark in (MANIFEST, REPORT):
        try:
            files = json.loads((folder / mark).read_bytes())["files"]
            return {mark, *(name for name in files if Path(name).name == name)}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            continue
    return set()


def _remove(folder: Path) -> None:
    """Remove a folder of this package's own, file by file: whatever else is in it stays, and the folder with it."""
    if not folder.is_dir():
        return
    marks = (MANIFEST, REPORT)
    try:
        # The mark goes last: what a kill leaves is still known.
        for name in sorted(_own_names(folder), key=lambda name: name in marks):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        return


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
        reason = first_line(error)
        system = re.search(r"\(os error (\d+)\)", reason)
        if system is not None:
            raise OSError(int(system[1]), os.strerror(int(system[1])), str(folder)) from error
        if "PytorchStreamWriter" in reason:
            raise OSError(errno.EIO, reason, str(folder)) from error
        raise
