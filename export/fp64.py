"""Converts a graph to fp64, the reference for fp32 rounding if there is no PyTorch model."""

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["in_fp64"]

_FLOAT, _DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE


def in_fp64(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert every fp32 constant and cast of a graph to fp64, in place.

    Args:
        model: The graph, with loaded weights.

    Returns:
        The same object.
    """
    graph = model.graph
    for index, tensor in enumerate(graph.initializer):
        if tensor.data_type == _FLOAT:
            graph.initializer[index].CopyFrom(_wide(tensor))
    for node in graph.node:
        for attribute in node.attribute:
            # A cast to fp32 would round, so it becomes a cast to fp64.
            if attribute.name == "to" and attribute.i == _FLOAT:
                attribute.i = _DOUBLE
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == _FLOAT:
                attribute.t.CopyFrom(_wide(attribute.t))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == _FLOAT:
            value.type.tensor_type.elem_type = _DOUBLE
    return model


def _wide(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
