"""Bundles made on first use: exported once and cached by content in the user's cache folder."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlm_infer.bundle.manifest import SCHEMA, Manifest, check_all, hash_file
from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.errors import BundleError, ExportError

__all__ = ["CACHE_VARIABLE", "cache_folder", "can_export", "export_once"]

CACHE_VARIABLE = "MLM_INFER_CACHE"
"""Environment variable that names another cache folder."""

_PACKAGES = ("torch", "transformers", "onnx", "onnx_ir", "filelock")


def cache_folder() -> Path:
    """Return the folder of bundles made on first use: `MLM_INFER_CACHE`, or mlm-infer in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "mlm-infer"


def can_export() -> bool:
    """Return whether the packages of the extra [export] are installed, without importing them."""
    return all(importlib.util.find_spec(name) is not None for name in _PACKAGES)


def export_once(model: Path, files: Iterable[Path], arguments: Mapping[str, Sequence[str]]) -> tuple[Path, Manifest]:
    """Return the bundle that `mlm-export` makes of a model, from the cache if the same files were exported before.

    The export runs in a separate process, so that torch is never loaded into this one, and reports its steps on
    stderr. A second process that needs the same bundle waits for the first.

    Args:
        model: The folder or ONNX file to export.
        files: All files that the bundle depends on.
        arguments: Arguments of `export_bundle`, other than model and output.

    Returns:
        The bundle and its manifest; all files have been verified.

    Raises:
        BundleError: The cache folder cannot be written, or others can write to it.
        ExportError: The export failed.
    """
    entry = cache_folder() / f"{_name(model)}-{_key(files, arguments)}"
    try:
        entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        manifest = _read(entry)
        if manifest is None:
            with _alone(entry, model):
                # Another process may have made it while this one waited for the lock.
                manifest = _read(entry) or _make(model, entry, arguments)
    except OSError as error:
        raise BundleError(
            f"the cache folder {entry.parent} cannot be written ({error.strerror}): set {CACHE_VARIABLE} to another, "
            f"or write a bundle with: mlm-export {model} OUT"
        ) from error
    return entry, manifest


@contextmanager
def _alone(entry: Path, model: Path) -> Iterator[None]:
    """Hold the lock of an entry, waiting for another process that has it."""
    # A lock per entry: different models may be exported at the same time. The operating system releases the lock of a
    # killed process. The lock is outside the entry, which may be removed and made again.
    from filelock import FileLock, Timeout

    lock = FileLock(entry.parent / f".{entry.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"another process is exporting {model}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(model: Path, entry: Path, arguments: Mapping[str, Sequence[str]]) -> Manifest:
    shutil.rmtree(entry, ignore_errors=True)
    _say(f"exporting {model}, this once; it is kept in {entry}")
    _export(model, entry, arguments)
    entry.chmod(0o700)
    return check_all(entry, read_manifest(entry))


def _export(model: Path, entry: Path, arguments: Mapping[str, Sequence[str]]) -> None:
    module = "mlm_infer.export.first_use"
    command = [sys.executable, "-P", "-m", module, str(model), str(entry), json.dumps(arguments)]
    event: dict[str, str] = {}
    # stderr is kept for the case that the process fails without reporting an error itself.
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, encoding="utf-8"
        ) as process,
    ):
        assert process.stdout is not None  # noqa: S101
        try:
            for line in process.stdout:
                event = json.loads(line)
                if "step" in event:
                    _say(f"{event['step']} ...")
        except BaseException:
            process.terminate()
            raise
        if process.wait() == 0:
            return
        said.seek(0)
        last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
    raise ExportError(f"cannot export {model}: {event.get('error') or last or f'it ended with {process.returncode}'}")


def _say(text: str) -> None:
    """Print a message on stderr. click is imported here, so that filling masks alone does not load it."""
    import click

    click.echo(text, err=True)


def _name(model: Path) -> str:
    """Return a readable name of the model: for a Hub snapshot the repository instead of the commit."""
    folder = model.resolve() if model.is_dir() else model.resolve().parent
    while folder.name == "onnx":
        folder = folder.parent
    if folder.parent.name == "snapshots":
        folder = folder.parent.parent
    return folder.name.removeprefix("models--")


def _key(files: Iterable[Path], arguments: Mapping[str, Sequence[str]]) -> str:
    """Return a name for what an export depends on: its input, its arguments, and the exporting code."""
    digest = hashlib.sha256()
    for part in (importlib.metadata.version("mlm-infer"), str(SCHEMA), json.dumps(arguments, sort_keys=True)):
        digest.update(part.encode() + b"\0")
    for path in sorted(files):
        digest.update(f"{path.name}\0{hash_file(path).sha256}\0".encode())
    return digest.hexdigest()[:16]


def _read(entry: Path) -> Manifest | None:
    """Return the manifest of a complete and undamaged entry, or None if it has to be made (again).

    Raises:
        BundleError: Another user could have written the entry.
    """
    _check_owner(entry.parent)
    if not entry.is_dir():
        return None
    _check_owner(entry)
    try:
        return check_all(entry, read_manifest(entry))
    except (BundleError, OSError):
        return None


def _check_owner(folder: Path) -> None:
    status = folder.stat()
    if sys.platform == "win32" or (
        status.st_uid in (os.geteuid(), 0) and not status.st_mode & stat.S_IWOTH  # root can do anything anyway
    ):
        return
    raise BundleError(
        f"{folder} belongs to another user, or everybody can write to it, so its models cannot be trusted: make it "
        f"private (chmod 700), or set {CACHE_VARIABLE} to another folder"
    )
