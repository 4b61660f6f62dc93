"""The folder that `mlm-export` writes and `MaskFiller` reads: its manifest, and the check of its files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import BundleError

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "TOKENIZER",
    "Manifest",
    "ModelFile",
    "StoredFile",
    "hash_file",
    "read_manifest",
]

MANIFEST = "mlm_infer.json"
TOKENIZER = "tokenizer.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Size in bytes and sha256 of one file of a bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model of a bundle.

    Attributes:
        file: File name of the graph in the bundle.
        weights: File name of its weights, which ONNX Runtime maps into memory rather than copies.
        cpu: Kind of processor that an int8 file was made for; None for a file that fits all.
        details: How it was made: passes, quantization, versions of the tools.
    """

    file: str
    weights: str
    cpu: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `mlm_infer.json` says.

    Attributes:
        source: Checkpoint that was exported: `model`, `revision` and `sha256` of its weights where known.
        architecture: `model_type` of the checkpoint, such as `bert`.
        mask_token: The mask as the tokenizer writes it.
        mask_id: Its id.
        pad_id: Id of the padding token.
        vocab_size: Width of the vocabulary head.
        max_length: Most tokens a text may have, special tokens included.
        clean_up_spaces: Whether decoding joins punctuation to the word before it, as the tokenizer asks.
        inputs: Names of the encoder's inputs, among `input_ids`, `attention_mask`, `token_type_ids`.
        models: Model file by precision: `fp32`, `int8`.
        parity: How far each precision is from PyTorch, as the export measured it.
        files: Size and sha256 of every file but the manifest.
        created_with: Versions of the packages that made the bundle.
        schema: Version of this layout.
        mixes_padding: Whether padding changes this model's answers, as where it runs a convolution over a text:
            only texts of one length then share a run.
    """

    source: dict[str, Any]
    architecture: str
    mask_token: str
    mask_id: int
    pad_id: int
    vocab_size: int
    max_length: int
    clean_up_spaces: bool
    inputs: tuple[str, ...]
    models: dict[str, ModelFile]
    parity: dict[str, Any]
    files: dict[str, StoredFile]
    created_with: dict[str, str]
    schema: int = SCHEMA
    mixes_padding: bool = False

    def to_json(self) -> str:
        """Return the text of `mlm_infer.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, sort_keys=True) + "\n"

    def check_file(self, folder: Path, name: str) -> Path:
        """Return a file's path after checking that it is the one the manifest names.

        Args:
            folder: The bundle.
            name: File name in it.

        Raises:
            BundleError: The file is missing, of another size, or differs.
        """
        path = folder / name
        stored = self.files.get(name)
        if stored is None:
            raise BundleError(f"{folder / MANIFEST} lists no sha256 for {name}; export the model again")
        if not path.is_file():
            raise BundleError(f"{path} is missing; export the model again, or copy the whole folder")
        size = path.stat().st_size
        if size != stored.bytes:
            raise BundleError(f"{path} has {size:,} bytes, the manifest says {stored.bytes:,}; copy or export it again")
        if hash_file(path).sha256 != stored.sha256:
            raise BundleError(
                f"{path} is damaged or was changed: its sha256 is not the manifest's; copy or export it again"
            )
        return path


def hash_file(path: Path) -> StoredFile:
    """Return size and sha256 of a file."""
    with path.open("rb") as stream:
        return StoredFile(path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a bundle.

    Args:
        folder: The bundle.

    Raises:
        BundleError: There is no bundle, its manifest cannot be read, or a newer version wrote it.
    """
    if not folder.exists():
        raise BundleError(f"there is no folder {folder}; write one with: mlm-export MODEL {folder}")
    path = folder / MANIFEST
    if not path.is_file():
        hint = f"mlm-export {folder} OUT" if (folder / "config.json").is_file() else f"mlm-export MODEL {folder}"
        raise BundleError(f"{folder} is no bundle, it holds no {MANIFEST}; write one with: {hint}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path} is not JSON ({error}); export the model again") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if not isinstance(schema, int):
        raise BundleError(f"{path} has no schema number; export the model again")
    if schema > SCHEMA:
        raise BundleError(f"{path} has schema {schema}, this version reads up to {SCHEMA}; upgrade mlm-infer")
    return _parse(path, values)


def _parse(path: Path, values: Mapping[str, Any]) -> Manifest:
    expected: dict[str, type] = {
        "source": dict,
        "architecture": str,
        "mask_token": str,
        "mask_id": int,
        "pad_id": int,
        "vocab_size": int,
        "max_length": int,
        "clean_up_spaces": bool,
        "inputs": list,
        "models": dict,
        "parity": dict,
        "files": dict,
        "created_with": dict,
    }
    for name, kind in expected.items():
        if not isinstance(values.get(name), kind):
            raise BundleError(
                f"{path}: {name} is {values.get(name)!r}, not of type {kind.__name__}; export the model again"
            )
    try:
        models = {precision: ModelFile(**each) for precision, each in values["models"].items()}
        files = {name: StoredFile(**each) for name, each in values["files"].items()}
    except TypeError as error:
        raise BundleError(
            f"{path}: models or files are not as this version writes them; export the model again"
        ) from error
    for name in files:
        if Path(name).name != name:
            raise BundleError(f"{path} names the file {name!r}; a bundle's files lie in its own folder")
    known = {name: values[name] for name in expected} | {"inputs": tuple(values["inputs"])}
    mixes_padding = values.get("mixes_padding", False) is True
    return Manifest(
        **known | {"models": models, "files": files, "schema": values["schema"], "mixes_padding": mixes_padding}
    )
