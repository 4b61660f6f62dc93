"""Runs a graph from memory with ONNX Runtime."""

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from mlm_infer.errors import ExportError, first_line
from mlm_infer.runtime.ort_session import load_onnxruntime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["copy_model", "open_model"]

_SMALL = 1024
"""Size in bytes up to which constants stay in the protobuf: ONNX Runtime needs shapes and axes there."""


def copy_model(model: ir.Model) -> ir.Model:
    """Return a copy whose graph can be modified; the weights are shared."""
    return model.clone()


def open_model(model: ir.Model, *, optimize: bool = True, outputs: tuple[str, ...] = ()) -> "InferenceSession":
    """Open a graph on the CPU without copying its weights.

    Args:
        model: The graph.
        optimize: Let ONNX Runtime fold constants; otherwise every value of the graph can be fetched by name.
        outputs: Names of additional values to fetch.

    Raises:
        ExportError: ONNX Runtime rejects the graph.
    """
    proto, weights = _without_weights(model)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_BASIC if optimize else levels.ORT_DISABLE_ALL
    # Errors are raised as exceptions; the log would repeat each one over several lines.
    options.log_severity_level = 4
    names = list(weights)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(weights[name]) for name in names]
    try:
        options.add_external_initializers(names, values)
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ExportError(f"ONNX Runtime refuses the graph: {first_line(error)}") from error


def _without_weights(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return a graph with large weights marked as external, and these weights; a protobuf is limited to 2 GiB."""
    held: dict[str, ir.TensorProtocol] = {}
    # A protobuf with placeholders in place of the weights; the session gets the weights as arrays, without a copy.
    try:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes > _SMALL:
                held[name] = tensor
                value.const_value = ir.ExternalTensor(
                    "elsewhere", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
                )
        proto = ir.to_proto(model)
    finally:
        for name, tensor in held.items():
            model.graph.initializers[name].const_value = tensor
    return proto, {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in held.items()}
