"""The bundle, which `mlm-export` writes and `MaskFiller` reads: its manifest and the verification of its files."""

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
"""Name of the model for torch among a bundle's models; the other names are precisions, for ONNX Runtime."""

SCHEMA = 2

_LARGEST = {TOKENIZER: 256 << 20, ".onnx": 64 << 20}
"""Maximum size in bytes of files that are read into memory, by name or suffix; weights are memory-mapped."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Size in bytes and sha256 of one file of a bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model of a bundle.

    Attributes:
        file: File name of the graph.
        weights: File name of the weights, which ONNX Runtime memory-maps; None if the graph file contains them.
        cpu: Type of processor that an int8 file of an older version was made for; None for a portable file, as every
            newer one is.
        details: How the model was made: passes, quantization, tool versions.
    """

    file: str
    weights: str | None = None
    cpu: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def overflows(self) -> bool:
        """Whether its int8 matmuls overflow on processors without an 8-bit dot product."""
        return self.cpu in ("avx512_vnni", "arm64")

    @property
    def names(self) -> list[str]:
        """Names of its files."""
        return [self.file] if self.weights is None else [self.file, self.weights]


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """One input with the answer recorded at the export.

    Attributes:
        text: The input, with one or more masks.
        ids: The top-k token ids for each mask.
        logprobs: Their log-probabilities.
    """

    text: str
    ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `mlm_infer.json`.

    Attributes:
        source: The exported checkpoint: `model`, `revision` and `sha256` of its weights, if known.
        architecture: `model_type` of the checkpoint, such as `bert`.
        mask_token: The tokenizer's mask token.
        mask_id: Its id.
        pad_id: Id of the padding token.
        vocab_size: Width of the vocabulary head.
        max_length: Maximum number of tokens in a text, special tokens included.
        clean_up_spaces: Whether decoding joins punctuation to the word before it, a setting of the tokenizer.
        inputs: Names of the encoder's inputs, among `input_ids`, `attention_mask`, `token_type_ids`.
        models: Model file by precision, `fp32`, `fp16` or `int8`, or `torchscript`, which is fp32.
        parity: Difference of each precision from PyTorch, as measured by the export.
        files: Size and sha256 of every file but the manifest.
        created_with: Versions of the packages that made the bundle.
        known_answers: By precision, inputs to replay with their expected answers.
        schema: Version of this layout.
        mixes_padding: Whether padding changes the model's answers, for example through a convolution over the text. If
            so, only texts of equal length share a batch.
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
        """Return a file's path after verifying its size and sha256.

        Args:
            folder: The bundle.
            name: File name in it.

        Raises:
            BundleError: The file is missing, links out of the folder, is too large, or differs from the manifest.
        """
        path = confine(folder, name)
        stored = self.files[name]
        # Sizes first: they are free, while hashing a large file takes time.
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
                f"{path} is damaged or was changed: its sha256 differs from the manifest; copy or export it again"
            )
        return path

    def content(self, _folder: Path) -> str:
        """Return a hash of all files of a bundle."""
        return _hash_text(json.dumps({name: each.sha256 for name, each in self.files.items()}, sort_keys=True))


@dataclass(frozen=True, slots=True)
class CheckedManifest(Manifest):
    """The manifest of a bundle whose files have all been verified; unchanged files are not hashed again.

    Attributes:
        identities: The `identity` of each file, taken before it was hashed.
    """

    identities: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def check_file(self, folder: Path, name: str) -> Path:
        """Return a file's path after checking that it is the hashed one, or has the same content."""
        path = confine(folder, name)
        return path if identity(path) == self.identities[name] else Manifest.check_file(self, folder, name)


@dataclass(frozen=True, slots=True)
class ForeignManifest(Manifest):
    """Metadata of a folder that `mlm-export` did not write. There are no hashes to verify its files against."""

    def check_file(self, folder: Path, name: str) -> Path:
        """Return a file's path after checking that it is there and does not lead out of the folder."""
        return confine(folder, name)

    def content(self, folder: Path) -> str:
        """Return a hash of sizes and times of the model's files, since hashing the files takes time."""
        names = [TOKENIZER, *(name for model in self.models.values() for name in model.names)]
        status = [(folder / name).stat() for name in names]
        return _hash_text(json.dumps([(each.st_size, each.st_mtime_ns) for each in status]))


def check_all(folder: Path, manifest: Manifest) -> CheckedManifest:
    """Check every file of a bundle.

    Args:
        folder: The bundle.
        manifest: Its manifest.

    Raises:
        BundleError: A file is missing or damaged.
    """
    identities = {}
    for name in manifest.files:
        # Before hashing: a change during or after it then shows as another identity.
        identities[name] = identity(confine(folder, name))
        manifest.check_file(folder, name)
    values = {each.name: getattr(manifest, each.name) for each in fields(manifest)}
    return CheckedManifest(**values, identities=identities)


def identity(path: Path) -> tuple[int, ...]:
    """Return values that change when a file is modified or replaced: device, inode, size and times."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextmanager
def unchanged(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Reject files that change between their verification and the end of opening; both access them by name.

    Args:
        folder: The bundle.
        names: File names in it.

    Raises:
        BundleError: A file has changed, or is missing.
    """
    before = {path: identity(path) for path in [confine(folder, name) for name in names]}
    yield
    for path, expected in before.items():
        if not path.is_file() or identity(path) != expected:
            raise BundleError(f"{path} was changed while it was opened; open it again")


def confine(folder: Path, name: str) -> Path:
    """Return a file's path after checking that it is in its folder, or in the blob store of its Hub cache.

    Args:
        folder: The folder.
        name: Path of the file in it.

    Raises:
        BundleError: The file is missing, or links out of the folder.
    """
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path} is missing; export the model again, or copy the whole folder")
    real, home = path.resolve(), folder.resolve()
    # A Hub cache keeps files in REPOSITORY/blobs and links to them from REPOSITORY/snapshots/COMMIT.
    stores = [each.parent / "blobs" for each in home.parents if each.name == "snapshots"]
    if not real.is_relative_to(home) and real.parent not in stores:
        raise BundleError(f"{path} is a link to {real}, outside the bundle; replace the link by a copy of the file")
    return path


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> StoredFile:
    """Return size and sha256 of a file."""
    with path.open("rb") as stream:
        return StoredFile(path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())
