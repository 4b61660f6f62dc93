"""`mlm-export info` and `mlm-export verify`: the content of a bundle, and its verification."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .bundle.manifest import TORCHSCRIPT
from .bundle.read_manifest import read_manifest
from .errors import BundleError
from .filler import open_named
from .runtime.cpu import multiplies_bytes
from .shared.tables import format_table, without_controls

__all__ = ["BundleDescription", "ModelDescription", "describe_bundle", "verify_bundle"]


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """One model of a bundle.

    Attributes:
        bytes: Size of graph and weights.
        cpu: Type of processor for an int8 model of an older version; None for a portable model.
        layers: Number of layers by quantization scheme, embeddings included.
        known_answers: Number of recorded inputs with answers.
        top1: Top-1 agreement with PyTorch on single-mask sentences.
        perplexity_change: Relative change of perplexity on these sentences, compared with PyTorch.
    """

    bytes: int
    cpu: str | None
    layers: dict[str, int]
    known_answers: int
    top1: float | None
    perplexity_change: float | None


@dataclass(frozen=True, slots=True)
class BundleDescription:
    """Summary of a manifest.

    Attributes:
        source: The checkpoint that was exported.
        revision: Its revision, if it came from a hub.
        architecture: Its `model_type`.
        mask_token: The model's mask token.
        max_length: Maximum number of tokens in a text.
        vocab_size: Size of the vocabulary.
        schema: Schema version of the manifest.
        models: Models by precision.
        created_with: Versions of the packages that made the bundle.
    """

    source: str
    revision: str | None
    architecture: str
    mask_token: str
    max_length: int
    vocab_size: int
    schema: int
    models: dict[str, ModelDescription]
    created_with: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the description as a dictionary that can be written as JSON."""
        return asdict(self)

    def text(self) -> str:
        """Return the description as text, without control characters, which could manipulate a terminal."""
        revision = f", revision {without_controls(self.revision)}" if self.revision else ""
        shown = without_controls
        rows = [
            [
                precision,
                f"{model.bytes / 1e6:.1f}",
                shown(model.cpu or "any"),
                ", ".join(f"{count} {shown(scheme)}" for scheme, count in model.layers.items()) or "not quantized",
                "-" if model.top1 is None else f"{model.top1:.1%}",
                "-" if model.perplexity_change is None else f"{model.perplexity_change:+.2%}",
                str(model.known_answers),
            ]
            for precision, model in self.models.items()
        ]
        header = ["", "MB", "made for", "layers", "top-1 agreement", "perplexity", "known answers"]
        return "\n".join(
            [
                f"{self.source}{revision}: {self.architecture}, {self.vocab_size:,} tokens, texts of up to "
                f"{self.max_length} tokens, mask {self.mask_token}",
                "",
                format_table(header, rows),
                "",
                f"schema {self.schema}; made with "
                + ", ".join(f"{shown(name)} {version}" for name, version in self.created_with.items()),
            ]
        )


def describe_bundle(folder: Path) -> BundleDescription:
    """Describe a bundle from its manifest alone.

    Args:
        folder: The bundle.

    Raises:
        BundleError: The folder is not a bundle, or its manifest is invalid.
    """
    manifest = read_manifest(folder)
    models = {}
    try:
        # Only the case of single-mask sentences has a meaningful perplexity; the others vary length and batch size.
        sentences = {case["precision"]: case for case in manifest.parity["cases"] if case["case"] == "sentences"}
        for precision, model in manifest.models.items():
            # The content of `details` is not validated on reading, hence the broad `except` below.
            schemes = [str(layer["scheme"]) for layer in model.details.get("layers", [])]
            case = sentences.get(precision)
            models[precision] = ModelDescription(
                bytes=sum(manifest.files[name].bytes for name in model.names),
                cpu=model.cpu,
                layers={scheme: schemes.count(scheme) for scheme in dict.fromkeys(schemes)},
                known_answers=len(manifest.known_answers.get(precision, ())),
                top1=float(case["top1"]) if case else None,
                perplexity_change=case["perplexity"] / case["reference_perplexity"] - 1 if case else None,
            )
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise BundleError(f"{folder}: parity or layers are not as an export writes them; export again") from error
    revision = manifest.source.get("revision")
    return BundleDescription(
        source=str(manifest.source.get("model", "")),
        revision=None if revision is None else str(revision),
        architecture=manifest.architecture,
        mask_token=manifest.mask_token,
        max_length=manifest.max_length,
        vocab_size=manifest.vocab_size,
        schema=manifest.schema,
        models=models,
        created_with=manifest.created_with,
    )


def verify_bundle(folder: Path, *, torchscript: bool = False) -> Iterator[str]:
    """Check size and sha256 of every file, then open each model and replay its known answers.

    Args:
        folder: The bundle.
        torchscript: Also open a TorchScript model, which runs the code in it.

    Yields:
        A line for each check that passed.

    Raises:
        BundleError: A check failed; the message names the file.
    """
    # All files first, then the models: a damaged file is named as such, and not as a model that cannot be opened.
    manifest = read_manifest(folder)
    for name, stored in sorted(manifest.files.items()):
        manifest.check_file(folder, name)
        yield f"{name}: {stored.bytes:,} bytes, sha256 as in the manifest"
    for precision, model in manifest.models.items():
        if precision == TORCHSCRIPT and not torchscript:
            yield f"{precision}: not opened, since it is code; if you trust who made it, take --torchscript"
            continue
        # An int8 model of an older version overflows here, so its known answers cannot be reproduced on this machine.
        foreign = model.overflows and not multiplies_bytes()
        open_named(folder, precision, self_test=not foreign).close()
        yield f"{precision}: " + (
            f"opens; its answers can be checked on {model.cpu} only" if foreign else "opens, known answers reproduced"
        )
