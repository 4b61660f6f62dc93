"""Exports through transformers' own exporter, which is based on `torch.export` (since transformers 5.13)."""

import inspect
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from transformers import PreTrainedModel

from mlm_infer.errors import ExportError, first_line
from mlm_infer.shared.quiet import quiet

from .exporters import OPSET, ExporterName, check_segments, refuse_inputs, text_inputs

__all__ = ["Transformers"]

_BEYOND_TEXT = ("bbox", "pixel_values", "inputs", "spatial_shapes")
"""Inputs of models that read more than text: positions on a page, images, bytes."""

_LARGEST_FILE = 1 << 30
"""Maximum size of weights, in bytes, that are stored in the graph file: protobuf is limited to 2 GiB."""

_LENGTHS = (13, 8)
"""Of the two sample texts. The second has padding: transformers skips the attention mask for samples without any."""


class Transformers:
    """Exports through `transformers.exporters`."""

    name: ExporterName = "transformers"

    def export(self, model: PreTrainedModel, folder: Path, tokenizer_inputs: Sequence[str]) -> Path:
        """Export a model; see `Exporter`."""
        from transformers.exporters import OnnxConfig, OnnxExporter

        architecture = model.config.model_type
        taken = list(inspect.signature(model.forward).parameters)
        refuse_inputs(architecture, [name for name in _BEYOND_TEXT if name in taken])
        check_segments(model.config)
        sample = _sample(text_inputs(taken, tokenizer_inputs))
        auto = torch.export.Dim.AUTO
        shapes = {name: {0: auto, 1: auto} for name in sample}
        config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, opset_version=OPSET)
        # torch.onnx prints its steps.
        with quiet("transformers", "torch", "onnxscript", "onnx_ir"), redirect_stdout(io.StringIO()):
            try:
                program = OnnxExporter().export(model, sample, config=config).program
            except Exception as error:  # the model's own code runs in torch.export and may raise anything
                raise ExportError(
                    f"transformers cannot export this {architecture}: {_reason(error)}; "
                    "try Optimum with transformers below 4.58: pip install 'mlm-infer[optimum]'"
                ) from error
        folder.mkdir()
        path = folder / "model.onnx"
        large = sum(each.const_value.nbytes for each in program.graph.initializers.values()) > _LARGEST_FILE
        ir.save(program, path, external_data="model.onnx.data" if large else None)
        return path


def _sample(names: Sequence[str]) -> dict[str, torch.Tensor]:
    longest = max(_LENGTHS)
    mask = torch.tensor([[1] * length + [0] * (longest - length) for length in _LENGTHS])
    values: dict[str, Any] = {
        "input_ids": torch.arange(longest).repeat(len(_LENGTHS), 1) + 5,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(mask),
    }
    return {name: values[name] for name in names}


def _reason(error: BaseException) -> str:
    """Return the message of the first cause: torch.onnx wraps it in a report of many lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)[:300]
