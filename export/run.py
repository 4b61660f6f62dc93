"""`export_bundle`: from a checkpoint, or an ONNX file, to the bundle in its place."""

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

    The bundle is written beside its place and renamed when it is complete and its answers have been
    compared with PyTorch's.

    Args:
        model: Hub id or folder of the checkpoint, or an ONNX file that somebody exported from one, which is
            compared with itself then.
        output: Folder to write.
        precisions: Of the ONNX models, one or more of `fp32`, `fp16` (for CUDA) and `int8` (for the CPU).
        formats: `onnx`, `torchscript` (in fp32; PyTorch calls it deprecated) or both in one bundle.
        budget: What int8 and fp16 may cost; None takes the defaults of `Budget`.
        calibration_data: UTF-8 text for int8, one text a line; None takes the built-in movie reviews, or text that
            the model writes by itself where its vocabulary is not made for them.
        without_passes: Graph passes to leave out, among `fusions`, `attention` and `rows`.
        exporter: `optimum`, which works with transformers below 4.58, or `transformers`, its own from 5.13 on; None
            takes the one that fits the installed version.
        overwrite: Replace an output folder that exists, once the new one is complete: an empty one, or one that holds
            what this package wrote and nothing else, and lies apart from what is read.
        on_step: Called with a line of text as each step begins.
        on_progress: Called with the share of the work that is done, from 0 to 1, a rough estimate of the time.

    Returns:
        The comparison with PyTorch, which the bundle's manifest holds too.

    Raises:
        OutputExistsError: The output folder exists and `overwrite` is false, or it may not be replaced.
        ModelError: The checkpoint is no masked language model, its head has no weights, or its
            architecture cannot be exported.
        ExportError: The fp32 answers are much further from those in fp64 than PyTorch's own, or int8 or fp16 cannot
            meet the budget, or int8 would not be much smaller than fp32.
        DataError: The calibration text cannot be read, is too short, or in another alphabet.
        DependencyError: No exporter is installed that works with this transformers.
        InputError: A precision or format is not known, or TorchScript alone is asked for in another than fp32.
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
