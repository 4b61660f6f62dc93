"""Exports through optimum-onnx, which requires transformers below 4.58."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mlm_infer.bundle.interface import ENCODER_INPUTS
from mlm_infer.errors import ExportError, ModelError, first_line
from mlm_infer.shared.quiet import quiet

from .exporters import OPSET, ExporterName, check_segments, refuse_inputs, text_inputs

__all__ = ["Optimum"]

_LEFT_OUT = frozenset(["global_attention_mask"])
"""Inputs of Optimum's exports that transformers does not use for fill-mask."""

_TRACED_LENGTH = 13
"""Odd, so that the padding of a model that pads to a multiple of its window becomes part of the graph."""


class Optimum:
    """Exports through `optimum.exporters.onnx`."""

    name: ExporterName = "optimum"

    def export(self, model: PreTrainedModel, folder: Path, tokenizer_inputs: Sequence[str]) -> Path:
        """Export a model; see `Exporter`."""
        return _export(model, folder, tokenizer_inputs)


def _export(model: PreTrainedModel, folder: Path, tokenizer_inputs: Sequence[str]) -> Path:
    from optimum.exporters.onnx import onnx_export_from_model
    from optimum.exporters.tasks import TasksManager

    architecture = model.config.model_type
    supported = TasksManager.get_supported_model_type_for_task("fill-mask", exporter="onnx")
    if architecture.replace("_", "-") not in {each.replace("_", "-") for each in supported}:
        raise ModelError(
            f"Optimum does not export {architecture} for fill-mask; it exports {', '.join(sorted(supported))}"
        )
    constructor = TasksManager.get_exporter_config_constructor(
        "onnx", model, task="fill-mask", library_name="transformers"
    )
    plain = constructor(model.config)
    refuse_inputs(architecture, [*(set(plain.inputs) - set(ENCODER_INPUTS) - _LEFT_OUT)])
    check_segments(model.config)
    wanted = text_inputs(list(plain.inputs), tokenizer_inputs)
    inputs = {name: axes for name, axes in plain.inputs.items() if name in wanted}
    narrowed = type("TextOnnxConfig", (type(plain),), {"inputs": inputs})(model.config, task="fill-mask")
    with quiet("transformers", "optimum"), _traceable_windows():
        try:
            onnx_export_from_model(
                model,
                folder,
                task="fill-mask",
                opset=OPSET,
                do_validation=False,
                custom_onnx_configs={"model": narrowed},
                sequence_length=_TRACED_LENGTH,
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise ExportError(f"Optimum could not export this {architecture}: {first_line(error)}") from error
    return folder / "model.onnx"


@contextmanager
def _traceable_windows() -> Iterator[None]:
    """Let Longformer select its overlapping windows by index: strides would be constants of the traced length."""
    original = torch.Tensor.as_strided

    def windows(tensor: torch.Tensor, size: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
        rows = tensor.reshape(size[0], -1, size[-1])
        starts = torch.arange(size[1]) * (stride[1] // stride[2])
        return rows[:, starts[:, None] + torch.arange(size[2])]

    torch.Tensor.as_strided = windows  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.Tensor.as_strided = original  # type: ignore[method-assign]
