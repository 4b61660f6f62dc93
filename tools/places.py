"""Provides a full disk and a read-only folder, by mounts or, without that right, by limits and permissions."""

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# ruff: noqa: S603, S607
__all__ = ["full_disk", "read_only"]

Prepare = Callable[[], None]
"""What a subprocess must do before it starts, for the place to be as it is."""

_NOBODY = 65534


def _mount(*arguments: str | Path) -> bool:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def _nothing() -> None:
    """Prepare nothing."""


@contextmanager
def full_disk(folder: Path, size: int) -> Iterator[Prepare]:
    """Make a folder a disk of limited size, or without the right to mount, limit the size of files."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    folder.mkdir()
    mounted = _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield _nothing if mounted else limit
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[Prepare]:
    """Make a folder read-only by a mount, or by its permissions for a user who is not root."""

    def leave_root() -> None:
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)

    mounted = _mount("--bind", folder, folder) and _mount("-o", "remount,ro,bind", folder)
    if not mounted:
        folder.chmod(0o555)
    try:
        yield _nothing if mounted or os.geteuid() else leave_root
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
        else:
            folder.chmod(0o755)
