"""Atomic output folders: complete or absent, and never replacing anything that this package did not write."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from mlm_infer.bundle.manifest import MANIFEST
from mlm_infer.errors import MlmInferError, OutputExistsError, first_line

__all__ = ["REPORT", "check_output", "holds", "move_into_place", "writing"]

REPORT = "training_report.json"
"""The report that `mlm-train` writes. Like a bundle's manifest, it lists the files of its folder under `files`,
with relative paths."""


_LITTLE = 1 << 20
"""With less than so many free bytes a disk counts as full: a file that did not fit may have left some."""

Sources = Iterable[str | os.PathLike[str]]


def check_output(target: Path, *, overwrite: bool, sources: Sources = ()) -> None:
    """Reject an output folder that exists, unless it may be replaced and belongs to this package.

    Args:
        target: The output folder.
        overwrite: Replace an existing folder if it is empty, or contains only files that `mlm-export` or `mlm-train`
            wrote.
        sources: Input files and folders; names that do not exist on this machine are ignored.

    Raises:
        OutputExistsError: The folder exists and must not be replaced.
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
    """Return whether a path is a folder or lies in it at any depth, through any links and spellings."""
    if not folder.exists() or not path.exists():
        return False
    real = path.resolve()
    return any(folder.samefile(each) for each in (real, *real.parents))


def move_into_place(folder: Path, target: Path, *, overwrite: bool, sources: Sources = ()) -> None:
    """Rename a finished folder to its final name; an existing folder is replaced only at this point.

    Args:
        folder: The finished folder, on the same file system as the target.
        target: Its final name.
        overwrite: As for `check_output`, which runs again.
        sources: As for `check_output`.

    Raises:
        OutputExistsError: The target exists and must not be replaced; it may have been created meanwhile.
    """
    check_output(target, overwrite=overwrite, sources=sources)
    old = _replaced(target)
    _remove(old)
    try:
        if target.exists():
            # A rename cannot replace a folder with files in it, so the old one is moved away first. Files may have been
            # added since the check; under the new name no more are, so it is checked again.
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
    """Return the temporary name of a folder that is being replaced; a kill may leave it behind."""
    return target.with_name(f".{target.name}.replaced")


def _why_not(path: Path) -> str:
    """Return why an existing path must not be replaced, or an empty string if it may be."""
    if path.is_symlink():
        return "is a link; name the folder that it leads to"
    if not path.is_dir():
        return "is a file; name another folder"
    own = _own_names(path)
    other = sorted(name for name in _names(path, _parents(own)) if name not in own)
    if not other:
        return ""
    shown = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
    return f"holds what mlm-infer did not write ({shown}); name another folder, or remove that first"


def _names(folder: Path, parents: set[str], inner: str = "") -> Iterator[str]:
    """Yield relative paths: of files and links, and of sub-folders in which no file is this package's."""
    for path in (folder / inner).iterdir():
        name = path.relative_to(folder).as_posix()
        if name in parents and path.is_dir() and not path.is_symlink():
            yield from _names(folder, parents, name)
        else:
            # A folder with the name of a file is not this package's either.
            yield f"{name}/" if path.is_dir() and not path.is_symlink() else name


def _parents(names: set[str]) -> set[str]:
    """Return the sub-folders of relative paths."""
    return {str(parent) for name in names for parent in PurePosixPath(name).parents} - {"."}


def _own_names(folder: Path) -> set[str]:
    """Return the relative paths of files that the manifest or report of a folder lists, including its own."""
    for mark in (MANIFEST, REPORT):
        try:
            files = json.loads((folder / mark).read_bytes())["files"]
            return {mark, *(name for name in files if _stays_inside(name))}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            continue
    return set()


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return str(path) == name and not path.is_absolute() and ".." not in path.parts


def _remove(folder: Path) -> None:
    """Remove this package's files from a folder, and the folder if it is empty then; other files are kept."""
    if not folder.is_dir():
        return
    marks = (MANIFEST, REPORT)
    own = _own_names(folder)
    parents = sorted(_parents(own), reverse=True)
    try:
        if any((folder / name).is_symlink() for name in parents):
            return  # its files are elsewhere
        # The manifest or report is removed last, so that the rest can still be identified after a kill.
        for name in sorted(own - set(marks)):
            (folder / name).unlink(missing_ok=True)
        for name in parents:
            if (folder / name).is_dir():
                (folder / name).rmdir()
        for name in marks:
            if name in own:
                (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        return


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Convert any exception about a file that cannot be written to an OSError that names the folder.

    The OSError of a full disk has no file name, and tokenizers, safetensors and torch raise their own exceptions.

    Args:
        folder: The folder that is written.

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
        if "PytorchStreamWriter" in reason or "inline_container" in reason:
            # torch reports that not all bytes arrived, and not why.
            full = shutil.disk_usage(folder).free < _LITTLE
            number = errno.ENOSPC if full else errno.EIO
            raise OSError(number, os.strerror(number), str(folder)) from error
        raise
