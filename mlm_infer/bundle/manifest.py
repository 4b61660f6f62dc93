"""The folder that `mlm-export` writes and `MaskFiller` reads: its manifest, and the check of its files."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mlm_infer.errors import BundleError

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "TOKENIZER",
    "TORCHSCRIPT",
    "CheckedManifest",
    "ForeignManifest",
    "KnownAnswer",
    "Manifest",
    "ModelFile",
    "StoredFile",
    "check_all",
    "confine",
    "hash_file",
    "identity",
    "unchanged",
]

MANIFEST = "mlm_infer.json"
TOKENIZER = "tokenizer.json"
TORCHSCRIPT = "torchscript"
"""Name among a bundle's models of the one that torch runs; the others are precisions that ONNX Runtime runs."""

SCHEMA = 2

_LARGEST = {TOKENIZER: 256 << 20, ".onnx": 64 << 20}
"""Bytes beyond which a file that is read into memory is refused, by name or ending; weights are mapped."""


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
        weights: File name of its weights, which ONNX Runtime maps into memory rather than copies; None for a
            file that holds them itself.
        cpu: Kind of processor that an int8 file of an older version was made for; None for a file that is right on
            all, as every newer one is.
        details: How it was made: passes, quantization, versions of the tools.
    """

    file: str
    weights: str | None = None
    cpu: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def overflows(self) -> bool:
        """Whether its products overflow where a processor cannot add up products of 8-bit bytes."""
        return self.cpu in ("avx512_vnni", "arm64")

    @property
    def names(self) -> list[str]:
        """Names of its files."""
        return [self.file] if self.weights is None else [self.file, self.weights]


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """One input, and what the model answered when it was exported.

    Attributes:
        text: The input, with one or more masks.
        ids: The best token ids for each mask.
        logprobs: Their log-probabilities.
    """

    text: str
    ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]


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
        models: Model file by precision, `fp32`, `fp16` or `int8`, or `torchscript`, which is fp32.
        parity: How far each precision is from PyTorch, as the export measured it.
        files: Size and sha256 of every file but the manifest.
        created_with: Versions of the packages that made the bundle.
        known_answers: By precision, inputs to replay and what they must give.
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
    known_answers: dict[str, tuple[KnownAnswer, ...]] = field(default_factory=dict)
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
            BundleError: The file is missing, leads out of the folder, is too large, of another size, or differs.
        """
        path = confine(folder, name)
        stored = self.files[name]
        size = path.stat().st_size
        if size != stored.bytes:
            raise BundleError(f"{path} has {size:,} bytes, the manifest says {stored.bytes:,}; copy or export it again")
        largest = _LARGEST.get(name, _LARGEST.get(path.suffix))
        if largest is not None and size > largest:
            raise BundleError(f"{path} has {size:,} bytes, more than the {largest:,} that such a file may have")
        try:
            found = hash_file(path).sha256
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}; copy or export it again") from error
        if found != stored.sha256:
            raise BundleError(
                f"{path} is damaged or was changed: its sha256 is not the manifest's; copy or export it again"
            )
        return path


@dataclass(frozen=True, slots=True)
class CheckedManifest(Manifest):
    """The manifest of a bundle whose files have all been hashed, which they are not again unless they changed.

    Attributes:
        identities: What `identity` gave of each file before it was hashed.
    """

    identities: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def check_file(self, folder: Path, name: str) -> Path:
        """Return a file's path after checking that it is the one that was hashed, or one like it."""
        path = confine(folder, name)
        return path if identity(path) == self.identities[name] else Manifest.check_file(self, folder, name)


@dataclass(frozen=True, slots=True)
class ForeignManifest(Manifest):
    """What is known of a folder that `mlm-export` did not write. Nothing says what its files must hold."""

    def check_file(self, folder: Path, name: str) -> Path:
        """Return a file's path after checking that it is there and does not lead out of the folder."""
        return confine(folder, name)


def check_all(folder: Path, manifest: Manifest) -> CheckedManifest:
    """Check every file of a bundle.

    Args:
        folder: The bundle.
        manifest: Of it.

    Raises:
        BundleError: A file is missing or damaged.
    """
    identities = {}
    for name in manifest.files:
        identities[name] = identity(confine(folder, name))
        manifest.check_file(folder, name)
    values = {each.name: getattr(manifest, each.name) for each in fields(manifest)}
    return CheckedManifest(**values, identities=identities)


def identity(path: Path) -> tuple[int, ...]:
    """Return what differs once a file is written to or another takes its place, as far as that is seen from outside."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextmanager
def unchanged(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Refuse files that change between their check and the end of their opening, which are both done by name.

    Args:
        folder: The bundle.
        names: Its files.

    Raises:
        BundleError: One changed meanwhile, or is missing.
    """
    before = {path: identity(path) for path in [confine(folder, name) for name in names]}
    yield
    for path, expected in before.items():
        if not path.is_file() or identity(path) != expected:
            raise BundleError(f"{path} was changed while it was opened; open it again")


def confine(folder: Path, name: str) -> Path:
    """Return a file's path after checking that it is in its folder, or in the store that a Hub cache links to.

    Args:
        folder: The folder.
        name: Path of the file in it.

    Raises:
        BundleError: The file is missing, or a link out of the folder.
    """
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path} is missing; export the model again, or copy the whole folder")
    real, home = path.resolve(), folder.resolve()
    stores = [each.parent / "blobs" for each in home.parents if each.name == "snapshots"]
    if not real.is_relative_to(home) and real.parent not in stores:
        raise BundleError(f"{path} is a link to {real}, out of the bundle; copy the file itself there")
    return path


def hash_file(path: Path) -> StoredFile:
    """Return size and sha256 of a file."""
    with path.open("rb") as stream:
        return StoredFile(path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())
