"""`export_bundle`: exports a checkpoint or a third-party ONNX file to a bundle."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mlm_infer.shared.folders import check_output

from .budget import Budget
from .exporters import ExporterName
from .job import ExportJob
from .parity import ParityReport
from .progress import Progress
from .request import ExportRequest
from .workplace import workplace

__all__ = ["export_bundle"]


def export_bundle(
    model: str,
    output: str | os.PathLike[str],
    *,
    precisions: Sequence[str] = ("fp32",),
    formats: Sequence[str] = ("onnx",),
    budget: Budget | None = None,
    calibration_data: str | os.PathLike[str] | None = None,
    without_passes: Sequence[str] = (),
    exporter: ExporterName | None = None,
    overwrite: bool = False,
    on_step: Callable[[str], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> ParityReport:
    """Export a masked language model to a bundle that `MaskFiller` opens.

    The bundle is written beside its final path and renamed once it is complete and its answers have been compared with
    PyTorch's. Long because every argument is documented here.

    Args:
        model: Hub id or folder of a checkpoint, or a third-party ONNX export; the bundle of the latter is compared with
            that file instead of PyTorch.
        output: Folder to write.
        precisions: Precisions of the ONNX models: one or more of `fp32`, `fp16` (for CUDA) and `int8` (for the CPU).
        formats: `onnx`, `torchscript` (fp32 only; PyTorch has deprecated it) or both in one bundle.
        budget: The accuracy budget of int8 and fp16; None takes the defaults of `Budget`.
        calibration_data: UTF-8 file with the calibration text of int8, one text per line; None takes the built-in movie
            reviews, or text that the model generates if the reviews do not suit its vocabulary.
        without_passes: Graph passes to leave out, of `normalize`, `fusions`, `attention` and `rows`.
        exporter: `optimum` (Optimum, for transformers below 4.58) or `transformers` (the exporter of transformers
            itself, from 5.13 on); None takes the one that fits the installed version.
        overwrite: Replace an existing output folder once the new one is complete, provided that it is empty or contains
            only files that this package wrote, and does not overlap with an input.
        on_step: Called with a line of text at the start of each step.
        on_progress: Called with the finished share of the work, from 0 to 1, as a rough estimate of the time.

    Returns:
        The comparison with PyTorch, which the bundle's manifest contains too.

    Raises:
        OutputExistsError: The output folder exists and `overwrite` is false, or it may not be replaced.
        ModelError: The checkpoint is not a masked language model, its head has no weights, or its architecture cannot
            be exported.
        ExportError: The error of fp32 against fp64 is much larger than that of PyTorch's own fp32, int8 or fp16 cannot
            meet the budget, or int8 would not be much smaller than fp32.
        DataError: The calibration text cannot be read, is too short, or is in another alphabet.
        DependencyError: No exporter for the installed version of transformers is installed.
        InputError: A precision or format is unknown, or only TorchScript is requested, but not in fp32.
    """
    request = ExportRequest(
        model=model,
        output=Path(output).expanduser(),
        precisions=precisions,
        formats=formats,
        budget=budget or Budget(),
        calibration_data=None if calibration_data is None else Path(calibration_data),
        without_passes=without_passes,
        overwrite=overwrite,
        exporter=exporter,
    )
    check_output(request.output, overwrite=overwrite, sources=request.sources)
    stages = [*(["onnx"] if "onnx" in request.formats else []), *request.precisions, *request.formats]
    job = ExportJob(request, Progress(stages, on_step, on_progress))
    with workplace(request.output) as work:
        return job.run(work)
