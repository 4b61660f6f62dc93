"""Resolves a model's name: a bundle, a third-party ONNX file, a checkpoint, or a Hub id of any of these."""

import json
import logging
from collections.abc import Iterable
from importlib import resources
from os import PathLike
from pathlib import Path

from mlm_infer.bundle.interface import PRECISIONS
from mlm_infer.bundle.manifest import MANIFEST, TOKENIZER, Manifest
from mlm_infer.bundle.read_manifest import read_manifest
from mlm_infer.errors import BundleError, DependencyError, ExportError, InputError

from .cache import can_export, export_once
from .hub import fetch, is_hub_id
from .plain_exports import home_of, onnx_files, precision_of, read_foreign, settings_files

__all__ = ["locate", "shipped_model"]

logger = logging.getLogger(__name__)

_CHECKPOINT_SETTINGS = ("*.json", "*.txt", "*.model")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_SAFE_WEIGHTS = {"model.safetensors", "model.safetensors.index.json"}
"""If one of these exists, transformers loads no other weights."""


def shipped_model() -> Path:
    """Return the bundle of the small English model that is part of the package."""
    folder = Path(str(resources.files("mlm_infer").joinpath("resources/english-small")))
    if not folder.is_dir():
        raise BundleError("this installation lacks the small model; install it again, or name a bundle")
    return folder


def locate(
    model: str | PathLike[str],
    *,
    precision: str = "auto",
    backend: str = "auto",
    revision: str | None = None,
    local_files_only: bool = False,
) -> tuple[Path, Manifest]:
    """Return the folder that a model runs from, and its manifest.

    In a folder or repository, a bundle takes precedence over a plain ONNX export, and that over a checkpoint. With the
    extra [export] installed, the latter two are converted to bundles in the cache folder; without it, a plain export
    runs as it is.

    Args:
        model: Folder, ONNX file or Hub id.
        precision: As for `MaskFiller`: selects the ONNX file, and the precision that a checkpoint is exported to.
        backend: As for `MaskFiller`.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Do not contact the Hub.

    Raises:
        InputError: The name is invalid, or a local model is given a revision.
        BundleError: The model does not exist, a file is missing or invalid, or the cache cannot be written.
        ModelError: It is not a masked language model.
        DependencyError: It is a checkpoint, and [export] is not installed.
        ExportError: It cannot be exported.
    """
    path = _path(model)
    if revision is not None and not (isinstance(revision, str) and revision):
        raise InputError(f"revision is {revision!r}; give a branch, tag or commit of the Hub, or None")
    if not isinstance(precision, str):
        raise InputError(f"precision is {precision!r}; it must be 'auto' or one of {', '.join(PRECISIONS)}")
    if not isinstance(local_files_only, bool):
        raise InputError(f"local_files_only is {local_files_only!r}; it must be True or False")
    # A local path takes precedence over a Hub id of the same name, as in transformers.
    if path.exists() or not isinstance(model, str) or not is_hub_id(model):
        if revision is not None:
            raise InputError(f"revision is {revision!r}, but {path} is no model of the Hub; leave it out")
    else:
        path = fetch(
            model,
            revision=revision,
            local_files_only=local_files_only,
            choose=lambda names: _needed(names, precision),
            anchors=(MANIFEST, "config.json"),
        )
    if path.suffix == ".onnx" and path.is_file():
        return _from_onnx(path, precision)
    names = _names(path)
    if MANIFEST not in names:
        exports = onnx_files(names)
        if exports:
            chosen = _choose(exports, precision, path)
            return _from_onnx(path / exports[chosen], chosen)
        if "config.json" in names and _match(names, _WEIGHTS):
            return _from_checkpoint(path, names, precision, backend)
    return path, read_manifest(path)


def _path(model: str | PathLike[str]) -> Path:
    if not isinstance(model, str | PathLike):
        raise InputError(f"model is a {type(model).__name__}; give the folder of a bundle, or a Hub id")
    try:
        path = Path(model).expanduser()
        path.exists()
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(f"{model!r} names no folder: {error}") from error
    return path


def _names(folder: Path) -> list[str]:
    """Return the files of a folder and of its sub-folder `onnx`, as relative paths."""
    found = [*folder.glob("*"), *folder.glob("onnx/*")] if folder.is_dir() else []
    return [path.relative_to(folder).as_posix() for path in found if path.is_file()]


def _match(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if "/" not in name and any(Path(name).match(each) for each in patterns)]


def _files_of_export(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return all files that the export of a checkpoint may read; transformers decides which weights it loads."""
    names = sorted(names)
    found = {*_match(names, _CHECKPOINT_SETTINGS), *_match(names, _WEIGHTS)}
    for name in names:
        if name == "config.json" or name.endswith(".index.json"):
            found.update(_named_weights(folder / name))
    return [folder / name for name in sorted(found) if (folder / name).is_file()]


def _named_weights(settings: Path) -> list[str]:
    """Return the weight files that a settings file names; the export reports invalid settings."""
    try:
        values = json.loads(settings.read_bytes())
        named = [*values.get("weight_map", {}).values(), values.get("transformers_weights")]
    except (ValueError, AttributeError, RecursionError):
        return []
    return [name for name in named if isinstance(name, str)]


def _needed(names: Iterable[str], precision: str) -> list[str]:
    """Return which files of a repository to download."""
    # The same precedence as in `locate`.
    names = list(names)
    if MANIFEST in names:
        return _match(names, [MANIFEST, TOKENIZER, "model.*"])
    exports = onnx_files(names)
    if exports:
        return settings_files(names, exports.get(precision, next(iter(exports.values()))))
    # Repositories often have the same weights in several formats; only those that transformers would load are needed.
    safe = _SAFE_WEIGHTS & set(names)
    weights = _match(names, _WEIGHTS[:1] if safe else _WEIGHTS)
    return [*_match(names, _CHECKPOINT_SETTINGS), *weights] if weights else []


def _choose(exports: dict[str, str], precision: str, folder: Path) -> str:
    if precision not in ("auto", *exports):
        raise InputError(
            f"precision is {precision!r}, but {folder} holds {', '.join(exports)}; take 'auto', or make it with: "
            f"mlm-export {folder / next(iter(exports.values()))} OUT --precision {precision}"
        )
    return next(iter(exports)) if precision == "auto" else precision


def _from_onnx(path: Path, precision: str) -> tuple[Path, Manifest]:
    """Return a bundle converted from a plain export, or the plain export itself if it cannot be converted."""
    folder = home_of(path)
    name = path.relative_to(folder).as_posix()
    named = precision_of(path)
    manifest = read_foreign(folder, {named: name})
    if precision not in ("auto", named):
        raise InputError(f"precision is {precision!r}, but {path} is {named}; take 'auto'")
    if can_export():
        files = [folder / each for each in settings_files(_names(folder), name)]
        # A failed conversion is no reason to refuse a model that runs as it is.
        try:
            return export_once(path, files, {"precisions": [named]})
        except (BundleError, ExportError) as error:
            logger.warning("%s; it runs as it is, which is slower", error)
    return folder, manifest


def _from_checkpoint(folder: Path, names: Iterable[str], precision: str, backend: str) -> tuple[Path, Manifest]:
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision is {precision!r}; it must be 'auto' or one of {', '.join(PRECISIONS)}")
    if not can_export():
        raise DependencyError(
            f"{folder} is a PyTorch checkpoint, which has to be exported: pip install 'mlm-infer[export]' to have it "
            f"done on first use, or where that is installed: mlm-export {folder} OUT"
        )
    # The arguments are part of the cache key, so each precision and format is an entry of its own.
    arguments = {"formats": ["torchscript"]} if backend == "torchscript" else {}
    arguments |= {"precisions": [precision]} if precision != "auto" else {}
    return export_once(folder, _files_of_export(folder, names), arguments)
