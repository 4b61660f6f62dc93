"""Converts to fp16 for GPUs: dense layers, fused attention and tables in fp16, the rest in fp32."""

import numpy as np
import onnx_ir as ir

from .graph import add_constant, add_node, clean, constant_of

__all__ = ["rounded_as_on_gpu", "to_fp16"]

_PRODUCTS = frozenset(["Gemm", "MatMul", "MultiHeadAttention"])
_ELEMENTWISE = frozenset(["Add", "BiasGelu", "FastGelu", "Gelu", "Mul", "QuickGelu", "Relu", "Tanh"])
_MOVES = frozenset(["Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"])
_PADDING_MASK = 4
"""Index of the padding mask among the inputs of MultiHeadAttention; it is int32 and never cast."""
_LARGEST = float(np.finfo(np.float16).max)


def to_fp16(model: ir.Model) -> ir.Model:
    """Return a copy of a serving graph in fp16, with unchanged inputs and outputs.

    Dense layers and MultiHeadAttention (whose padding mask is integer) run in fp16, and so do the operators that follow
    until they meet an fp32 value: biases, activation functions, reshapes. Embedding tables are stored in fp16. Layer
    norms, residual sums, masks and softmaxes of unfused attention, and everything after the logits stay in fp32. So a
    mask constant of -3.4e38 is never converted to fp16, and the residual sum through all layers cannot overflow.

    Args:
        model: The fp32 serving graph; not modified.
    """
    small: ir.Model = ir.from_proto(ir.to_proto(model))
    graph = small.graph
    halves: set[ir.Value] = set()
    casts: dict[ir.Value, ir.Value] = {}

    def cast(value: ir.Value, before: ir.Node) -> ir.Value:
        if value not in casts:
            array = constant_of(value)
            if array is not None:
                # Out-of-range weights saturate: infinity would turn into NaN where it is multiplied by 0.
                half = np.clip(array, -_LARGEST, _LARGEST).astype(np.float16)
                casts[value] = add_constant(graph, f"{value.name}_fp16", half)
            else:
                to = ir.DataType.FLOAT if value in halves else ir.DataType.FLOAT16
                casts[value] = add_node(graph, "Cast", [value], {"to": to}, before=before)
                casts[value].type = ir.TensorType(to)
        return casts[value]

    for node in list(graph):
        # Nodes are visited in topological order, so it is known of each input whether it is fp16 by now.
        in_half = _runs_in_half(node, halves)
        for index, value in enumerate(node.inputs):
            if value is None or (value in halves) == in_half:
                continue
            if value in halves or _is_float_constant(value) or (node.op_type in _PRODUCTS and index != _PADDING_MASK):
                node.replace_input_with(index, cast(value, node))
        if in_half:
            halves.update(node.outputs)
            for output in node.outputs:
                output.type = ir.TensorType(ir.DataType.FLOAT16)
    clean(small)
    return small


def rounded_as_on_gpu(model: ir.Model) -> ir.Model:
    """Return a copy that rounds and overflows on the CPU as on a GPU, for comparisons.

    On a CPU, ONNX Runtime computes fp16 nodes in fp32 and removes the casts between two of them, so only the rounding
    of the weights would remain. A no-op between the casts prevents their removal.

    Args:
        model: A result of `to_fp16`; not modified.
    """
    copy: ir.Model = ir.from_proto(ir.to_proto(model))
    graph = copy.graph
    # ONNX Runtime removes a pair of casts only if they are adjacent.
    axis = add_constant(graph, "rounding_axis", np.array([0]))
    for node in list(graph):
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT16:
                users = list(output.uses())
                apart = add_node(graph, "Unsqueeze", [output, axis])
                rounded = add_node(graph, "Squeeze", [apart, axis])
                for user in users:
                    user.node.replace_input_with(user.idx, rounded)
    clean(copy)
    return copy


def _runs_in_half(node: ir.Node, halves: set[ir.Value]) -> bool:
    if any(output.is_graph_output() for output in node.outputs):
        return False
    if node.op_type in _PRODUCTS:
        return True
    if node.op_type in _MOVES:
        # A table is stored in fp16, which halves it, even if what follows its lookup runs in fp32.
        data = node.inputs[0]
        return data in halves or (node.op_type in ("Gather", "Transpose") and _is_float_constant(data))
    computed = [value for value in node.inputs if value is not None and not value.is_initializer()]
    return node.op_type in _ELEMENTWISE and bool(computed) and all(value in halves for value in computed)


def _is_float_constant(value: ir.Value | None) -> bool:
    if value is None or not value.is_initializer() or value.const_value is None:
        return False
    return value.const_value.dtype == ir.DataType.FLOAT
