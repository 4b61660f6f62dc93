"""int8 for the dense layers, the embeddings and the vocabulary head."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mlm_infer.cpu import CpuKind

from .graph import add_constant, add_node, clean, constant_of

__all__ = ["quantize", "quantize_columns"]


def quantize_columns(weights: NDArray[np.float32], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize a [rows, columns] matrix symmetrically with one scale a column.

    Args:
        weights: The matrix.
        bits: 8, or 7 where an 8-bit product would overflow its 16-bit accumulator.

    Returns:
        The int8 matrix, and the scales [columns] that turn it back into floats.
    """
    limit = 2 ** (bits - 1) - 1
    scales = np.abs(weights).max(axis=0) / limit
    scales[scales == 0] = 1.0
    return np.rint(weights / scales).astype(np.int8), scales.astype(np.float32)


def quantize(model: ir.Model, cpu: CpuKind) -> int:
    """Replace dense layers by int8 ones, in place.

    Weights get a scale for each output channel; activations are quantized as they come. The word
    embeddings get a scale for each token, and a head tied to them uses the same bytes.

    Args:
        model: A graph with the serving head.
        cpu: The processor to make it for: without VNNI, U8S8 products saturate and weights keep 7 bits.

    Returns:
        How many dense layers were replaced.
    """
    graph = model.graph
    bits = 8 if cpu in ("avx512_vnni", "arm64") else 7
    tables: dict[ir.Value, ir.Value] = {}
    for node in [each for each in graph if each.op_type == "Gather" and _is_table(each)]:
        _quantize_embedding(graph, node, tables, bits)
    count = 0
    for node in [each for each in graph if each.op_type == "MatMul"]:
        count += _quantize_dense(graph, node, bits, tables)
    model.graph.opset_imports.setdefault("com.microsoft", 1)
    clean(model)
    return count


def _is_table(node: ir.Node) -> bool:
    table = constant_of(node.inputs[0])
    return table is not None and table.ndim == 2 and table.dtype == np.float32 and table.shape[0] > 1024


def _quantize_embedding(graph: ir.Graph, node: ir.Node, tables: dict[ir.Value, ir.Value], bits: int) -> None:
    source = node.inputs[0]
    table = constant_of(source)
    assert source is not None  # noqa: S101
    assert table is not None  # noqa: S101
    columns, scales = quantize_columns(np.ascontiguousarray(table.T), bits)
    stored = add_constant(graph, f"{source.name}_int8", np.ascontiguousarray(columns.T))
    scale = add_constant(graph, f"{source.name}_scale", scales[:, None])
    tables[source] = stored
    rows = add_node(graph, "Gather", [stored, node.inputs[1]], {"axis": 0}, before=node)
    row_scales = add_node(graph, "Gather", [scale, node.inputs[1]], {"axis": 0}, before=node)
    floats = add_node(graph, "Cast", [rows], {"to": ir.DataType.FLOAT}, before=node)
    result = add_node(graph, "Mul", [floats, row_scales], before=node)
    node.outputs[0].replace_all_uses_with(result)
    graph.remove(node, safe=True)


def _quantize_dense(graph: ir.Graph, node: ir.Node, bits: int, tables: dict[ir.Value, ir.Value]) -> bool:
    activation, weight = node.inputs
    transpose = weight.producer() if weight is not None else None
    tied = transpose is not None and transpose.op_type == "Transpose" and transpose.inputs[0] in tables
    if tied:
        assert transpose is not None  # noqa: S101
        assert transpose.inputs[0] is not None  # noqa: S101
        stored = tables[transpose.inputs[0]]
        table = constant_of(transpose.inputs[0])
        assert table is not None  # noqa: S101
        scales = quantize_columns(np.ascontiguousarray(table.T), bits)[1]
        matrix = add_node(graph, "Transpose", [stored], {"perm": [1, 0]}, before=node)
    else:
        array = constant_of(weight)
        if array is None and transpose is not None and transpose.op_type == "Transpose":
            inner = constant_of(transpose.inputs[0])
            array = None if inner is None else np.ascontiguousarray(inner.T)
        if array is None or array.ndim != 2 or array.dtype != np.float32:
            return False
        columns, scales = quantize_columns(array, bits)
        matrix = add_constant(graph, f"{node.name or 'dense'}_int8", columns)
    scale = add_constant(graph, f"{node.name or 'dense'}_scale", scales)
    inputs: list[ir.Value | None] = [activation, matrix, scale, None]
    replaced = node
    users = list(node.outputs[0].uses())
    if len(users) == 1 and users[0].node.op_type == "Add":
        add = users[0].node
        bias = add.inputs[1 - users[0].idx]
        array = constant_of(bias)
        if array is not None and array.ndim == 1:
            inputs.append(bias)
            replaced = add
    result = add_node(graph, "DynamicQuantizeMatMul", inputs, domain="com.microsoft", before=replaced)
    replaced.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(replaced, safe=True)
    if replaced is not node:
        graph.remove(node, safe=True)
    return True
