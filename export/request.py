"""The arguments of an export, validated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlm_infer.bundle.interface import FORMATS, PRECISIONS
from mlm_infer.errors import InputError

from .budget import Budget
from .exporters import EXPORTERS, ExporterName
from .serving import PASSES
from .source import Source

__all__ = ["ExportRequest"]


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export, in which formats, and to which folder. The fields are the arguments of `export_bundle`.

    Raises:
        InputError: A value is invalid.
    """

    model: str
    output: Path
    precisions: Sequence[str]
    formats: Sequence[str]
    budget: Budget
    calibration_data: Path | None
    without_passes: Sequence[str]
    overwrite: bool
    exporter: ExporterName | None = None

    def __post_init__(self) -> None:
        _check_choice("precisions", self.precisions, PRECISIONS)
        _check_choice("formats", self.formats, FORMATS)
        if self.exporter not in (None, *EXPORTERS):
            known = ", ".join(map(repr, EXPORTERS))
            raise InputError(f"exporter is {self.exporter!r}; it must be None or one of {known}")
        if "onnx" not in self.formats and set(self.precisions) != {"fp32"}:
            raise InputError(
                f"precisions is {tuple(self.precisions)!r}, but TorchScript is fp32; add the format 'onnx'"
            )
        unknown = [each for each in self.without_passes if each not in PASSES]
        if unknown:
            raise InputError(f"there is no graph pass {unknown[0]!r}; the passes are {', '.join(PASSES)}")

    @property
    def sources(self) -> list[str | Path]:
        """The inputs, which must not be in a folder that the export replaces."""
        return [self.model, *([] if self.calibration_data is None else [self.calibration_data])]

    def check_source(self, source: Source) -> None:
        """Reject formats and precisions that cannot be made from an ONNX file.

        Raises:
            InputError: The source is an ONNX file, and such a format or precision is requested.
        """
        if not source.foreign:
            return
        if self.exporter is not None:
            raise InputError(f"exporter is {self.exporter!r}, and {self.model} is an ONNX file, exported already")
        if "torchscript" in self.formats:
            raise InputError(
                f"TorchScript is traced from a checkpoint, and {self.model} is an ONNX file; take the format 'onnx'"
            )
        # Rounding cannot be undone, and int8 weights cannot be calibrated again.
        if source.precision != "fp32" and set(self.precisions) != {source.precision}:
            raise InputError(
                f"{self.model} is {source.precision}, and nothing else can be made of it; choose --precision "
                f"{source.precision}"
            )


def _check_choice(name: str, found: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(found, str) or not found or not set(found) <= set(known):
        raise InputError(f"{name} is {found!r}; it must hold one or more of {', '.join(map(repr, known))}")
