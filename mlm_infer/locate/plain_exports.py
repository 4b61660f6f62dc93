"""Third-party plain ONNX exports: their files, and the metadata in their settings."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlm_infer.bundle.graph_scan import WEIGHTS_ENDINGS
from mlm_infer.bundle.interface import ENCODER_INPUTS
from mlm_infer.bundle.manifest import TOKENIZER, ForeignManifest, ModelFile
from mlm_infer.errors import BundleError, ModelError
from mlm_infer.text.tokenizer import SafeTokenizer

__all__ = ["home_of", "onnx_files", "precision_of", "read_foreign", "settings_files"]

_ONNX_FILES = {
    "fp32": ("model.onnx", "onnx/model.onnx"),
    "fp16": ("model_fp16.onnx", "onnx/model_fp16.onnx"),
    "int8": ("model_quantized.onnx", "onnx/model_quantized.onnx"),
}
"""File names that Optimum and transformers.js use, by precision; the first existing precision is the default.

fp32 comes first, because the answers of the others were never verified."""

_SETTINGS = ("config.json", TOKENIZER, "tokenizer_config.json", "special_tokens_map.json")
_MOST_IDS = 2**31
"""Upper limit of sizes and ids in the settings, which come from third parties."""

_AFTER_PADDING = frozenset(
    ["camembert", "data2vec-text", "esm", "ibert", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"]
)
"""Architectures whose positions start after the padding id, as in fairseq. A bundle records the length given by the
weights; for a plain ONNX file it must be derived from the settings."""


def onnx_files(names: Iterable[str]) -> dict[str, str]:
    """Return the ONNX exports among the files of a folder or repository, by precision."""
    held = set(names)
    found = {precision: [each for each in files if each in held] for precision, files in _ONNX_FILES.items()}
    return {precision: files[0] for precision, files in found.items() if files}


def precision_of(path: Path) -> str:
    """Return the precision that the name of an ONNX export implies."""
    return next((each for each, files in _ONNX_FILES.items() if path.name in files), "fp32")


def home_of(file: Path) -> Path:
    """Return the folder of a model, given an ONNX file in it or in its sub-folder `onnx`."""
    return file.parent.parent if file.parent.name == "onnx" and not (file.parent / TOKENIZER).exists() else file.parent


def settings_files(names: Iterable[str], model: str) -> list[str]:
    """Return the files that an ONNX export needs, itself included."""
    wanted = {model, *_SETTINGS, *(model + ending for ending in WEIGHTS_ENDINGS)}
    return sorted(wanted & set(names))


def read_foreign(folder: Path, files: Mapping[str, str]) -> ForeignManifest:
    """Read the metadata of plain ONNX exports.

    Args:
        folder: Folder with `config.json` and `tokenizer.json`.
        files: The exports by precision, as paths within the folder.

    Raises:
        BundleError: A file is missing or cannot be read.
        ModelError: The tokenizer has no mask.
    """
    config = _json(folder, "config.json")
    settings = _json(folder, "tokenizer_config.json", needed=False)
    special = _json(folder, "special_tokens_map.json", needed=False)
    if not (folder / TOKENIZER).is_file():
        raise BundleError(
            f"{folder} holds no {TOKENIZER}, without which texts cannot be read; "
            f"AutoTokenizer.from_pretrained(...).save_pretrained({str(folder)!r}) writes it"
        )
    tokenizer = SafeTokenizer(folder / TOKENIZER)
    # Newer tokenizers keep special tokens in tokenizer_config.json, older ones in a file of their own.
    mask = _token(settings.get("mask_token")) or _token(special.get("mask_token"))
    mask_id = tokenizer.token_to_id(mask) if mask else None
    if mask is None or mask_id is None:
        raise ModelError(f"the tokenizer of {folder} has no mask token, so nothing can be masked")
    models = {
        precision: ModelFile(
            file, next((file + ending for ending in WEIGHTS_ENDINGS if (folder / (file + ending)).is_file()), None)
        )
        for precision, file in files.items()
    }
    padding = _token(settings.get("pad_token")) or _token(special.get("pad_token")) or ""
    pad_id = _number(folder, config, "pad_token_id", tokenizer.token_to_id(padding) or 0)
    return ForeignManifest(
        source={"model": folder.resolve().name},
        architecture=str(config.get("model_type", "unknown")),
        mask_token=mask,
        mask_id=mask_id,
        pad_id=pad_id,
        vocab_size=_number(folder, config, "vocab_size", tokenizer.get_vocab_size()),
        max_length=_max_length(folder, config, settings, pad_id),
        clean_up_spaces=settings.get("clean_up_tokenization_spaces") is True,
        # All that there are: the backend passes on those that the graph has.
        inputs=ENCODER_INPUTS,
        models=models,
        parity={},
        files={},
        created_with={},
        # Whether padding changes the answers is unknown, so only texts of equal length share a batch.
        mixes_padding=True,
    )


def _json(folder: Path, name: str, *, needed: bool = True) -> dict[str, Any]:
    path = folder / name
    if not path.is_file() and not needed:
        return {}
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing; it belongs to the model, copy it there") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON ({error!s:.80}); copy it again") from error
    if not isinstance(found, dict):
        raise BundleError(f"{path} holds no settings; copy it again")
    return found


def _token(value: object) -> str | None:
    """Return a special token, given as a string or as a dictionary with its properties."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def _number(folder: Path, config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST_IDS:
        raise BundleError(f"{folder / 'config.json'}: {name} is {value!r:.40}, not a number from 0 to {_MOST_IDS - 1}")
    return value


def _max_length(folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any], pad_id: int) -> int:
    """Return the smallest length limit in the settings."""
    limits = [1 << 30]
    if str(config.get("model_type")).replace("_", "-") in _AFTER_PADDING:
        limits.append(_number(folder, config, "max_position_embeddings", 1 << 30) - pad_id - 1)
    else:
        limits.extend(_number(folder, config, name, 1 << 30) for name in ("max_position_embeddings", "n_positions"))
    said = settings.get("model_max_length")
    # transformers writes a number of 31 digits for "no limit".
    if isinstance(said, int | float) and said >= 1:
        limits.append(int(min(said, 1 << 30)))
    # Zero and below mean that the model has no position limit.
    return min(each for each in limits if each > 0)
