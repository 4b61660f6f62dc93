"""The cache of what is computed from the text of a data set, in the cache folder of `datasets`."""

import hashlib
import importlib.metadata
import json
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from mlm_infer.errors import DataError

__all__ = ["cached"]

_FORMAT = 1
"""To be raised when the same key stands for other content."""
_PACKAGES = ("datasets", "pyarrow", "tokenizers", "transformers")
_DAY = 24 * 3600


def cached(kind: str, key: Any, write: Callable[[Path], None]) -> Path:
    """Return the folder for a key, which is written at first.

    The folder gets its name once it is complete, so nothing that a killed process has left is used.

    Args:
        kind: What the folder holds; begins its name.
        key: All that the content depends on, besides the versions of the packages, as values of JSON.
        write: Writes the content to an empty folder.

    Raises:
        DataError: It cannot be written.
    """
    versions = [importlib.metadata.version(name) for name in _PACKAGES]
    text = json.dumps([_FORMAT, versions, key], sort_keys=True)
    parent = Path(datasets.config.HF_DATASETS_CACHE, "mlm-infer")
    folder = parent / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    if folder.is_dir():
        return folder
    part = parent / f"{folder.name}-{uuid.uuid4().hex}.part"
    try:
        part.mkdir(parents=True)
        _remove_leftovers(parent)
        write(part)
        try:
            part.rename(folder)
        except OSError:
            # Another process was faster.
            if not folder.is_dir():
                raise
    except OSError as error:
        raise DataError(
            f"cannot write the tokenized text to {parent}: {error.strerror or error}; "
            "make room there, or set HF_DATASETS_CACHE to another folder"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _remove_leftovers(parent: Path) -> None:
    """Remove what killed processes have left; a folder that was written to within a day may be in use."""
    for part in parent.glob("*.part"):
        try:
            newest = max(path.stat().st_mtime for path in (part, *part.iterdir()))
        except OSError:
            continue  # its process has just finished it
        if time.time() - newest > _DAY:
            shutil.rmtree(part, ignore_errors=True)
