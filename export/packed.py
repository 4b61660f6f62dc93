"""Splits packed dense layers, of whose output separate parts are used, into one layer for each part.

The rows of queries can then be selected, and attention matched, as in models with three layers for queries, keys and
values. The halves of gated feed-forward layers need not be copied, and can be balanced (export/balance.py).
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from .dense import Dense, dense_of
from .graph import add_constant, add_node, constant_of
from .shapes import Shape

__all__ = ["split_packed_layer"]

_PARTS_AXIS = 2
"""Axis of queries, keys and values in [batch, length, parts, heads, width]."""


def split_packed_layer(graph: ir.Graph, node: ir.Node, shapes: dict[str, Shape]) -> None:
    """Split the dense layer before a node that divides its output into parts.

    The node is a Reshape to [batch, length, parts, heads, width] whose uses all select one part, or a Slice or Split of
    the last axis, as all other uses of the output are. Nothing is done to any other node.

    Args:
        graph: The graph, modified in place; unused nodes remain.
        node: Any node of it.
        shapes: Symbolic shapes by value name.
    """
    layer = dense_of(node.inputs[0]) if node.op_type in ("Reshape", "Slice", "Split") else None
    if layer is None or layer.table is not None:
        return
    if node.op_type == "Reshape":
        _split_heads(graph, node, layer, shapes)
    elif any(output.uses() for output in node.outputs):
        _split_columns(graph, layer, shapes)


def _split_heads(graph: ir.Graph, node: ir.Node, layer: Dense, shapes: dict[str, Shape]) -> None:
    shape = shapes.get(node.outputs[0].name or "", ())
    sizes = [size for size in shape[2:] if isinstance(size, int)]
    if len(shape) != 5 or shape[:2] != ("B", "L") or len(sizes) != 3 or np.prod(sizes) != layer.weights.shape[1]:
        return
    found = [part for use in node.outputs[0].uses() for part in _selections(use.node, node.outputs[0])]
    if any(part is None for part in found) or not found:
        return
    _, heads, width = sizes
    dense: dict[int, ir.Value] = {}
    for output, index, order in (part for part in found if part is not None):
        if index not in dense:
            part = _part(graph, layer, range(index * heads * width, (index + 1) * heads * width))
            target = add_constant(graph, "heads_shape", np.array([0, 0, heads, width]))
            dense[index] = add_node(graph, "Reshape", [part, target], before=node)
        value = dense[index]
        if order != (0, 1, 2, 3):
            value = add_node(graph, "Transpose", [value], {"perm": order}, before=node)
        output.replace_all_uses_with(value, replace_graph_outputs=True)


def _split_columns(graph: ir.Graph, layer: Dense, shapes: dict[str, Shape]) -> None:
    width = layer.weights.shape[1]
    found = [part for use in layer.last.outputs[0].uses() for part in _ranges(use.node, width, shapes)]
    parts = {columns for _, columns in found if columns is not None}
    # Parts that overlap may be more columns than the layer has.
    if any(columns is None for _, columns in found) or sum(map(len, parts)) > width:
        return
    dense = {columns: _part(graph, layer, columns) for columns in sorted(parts, key=lambda each: each.start)}
    for output, columns in found:
        if columns is not None:
            output.replace_all_uses_with(dense[columns], replace_graph_outputs=True)


def _ranges(node: ir.Node, width: int, shapes: dict[str, Shape]) -> Iterator[tuple[ir.Value, range | None]]:
    """Yield the outputs of a user of a dense layer's output, with the columns that each holds; None if unknown."""
    held = [shapes.get(output.name or "", ("?",)) for output in node.outputs]
    # An axis can only be counted from the start if the number of axes is known.
    last = (-1, -1 if held[0] == ("?",) else len(held[0]) - 1)
    sizes = [shape[-1] for shape in held if isinstance(shape[-1], int)]
    if node.op_type == "Split" and node.attributes.get_int("axis", 0) in last and sum(sizes) == width:
        ends = np.cumsum([0, *sizes]).tolist()
        yield from zip(node.outputs, map(range, ends, ends[1:]), strict=True)
        return
    bounds = [constant_of(each) for each in node.inputs[1:]] if node.op_type == "Slice" else []
    numbers = [int(each.item()) for each in bounds if each is not None and each.size == 1]
    plain = len(numbers) == len(bounds) >= 3 and numbers[2] in last and numbers[3:] in ([], [1])
    columns = range(width)[numbers[0] : numbers[1]] if plain else range(0)
    yield node.outputs[0], columns or None


def _part(graph: ir.Graph, layer: Dense, columns: range) -> ir.Value:
    """Add the dense layer of some columns of another, right before it."""
    name = f"{layer.name}.{columns.start // len(columns)}"
    # A slice refers to the memory of the whole, so each part gets its own.
    weights = np.ascontiguousarray(layer.weights[:, columns.start : columns.stop])
    inputs = [layer.node.inputs[0], add_constant(graph, f"{name}.weight", weights)]
    value = add_node(graph, "MatMul", inputs, before=layer.node)
    product = value.producer()
    assert product is not None  # noqa: S101
    product.name = name
    if layer.bias is not None:
        bias = np.ascontiguousarray(layer.bias[columns.start : columns.stop])
        value = add_node(graph, "Add", [value, add_constant(graph, f"{name}.bias", bias)], before=layer.node)
    return value


_Part = tuple[ir.Value, int, tuple[int, ...]]
"""A selected part, its index, and the order of the axes of [batch, length, heads, width] in it."""


def _selections(node: ir.Node, value: ir.Value) -> Iterator[_Part | None]:
    """Yield the parts that a user of the divided value selects; None if it does anything else."""
    perm: tuple[int, ...] = (0, 1, 2, 3, 4)
    users = [node]
    if node.op_type == "Transpose":
        perm, value = tuple(node.attributes.get_ints("perm", [])), node.outputs[0]
        users = [use.node for use in value.uses()]
    axis = perm.index(_PARTS_AXIS)
    # Axes of the value without that of the parts.
    order = tuple(each - (each > _PARTS_AXIS) for each in perm if each != _PARTS_AXIS)
    for user in users:
        for output, index in _taken(user, axis):
            squeezes = [use.node for use in output.uses()] if index is not None else []
            axes = [constant_of(each.inputs[1]) for each in squeezes if each.op_type == "Squeeze"]
            fits = len(axes) == len(squeezes) and all(
                each is not None and each.tolist() in ([axis], [axis - 5]) for each in axes
            )
            if index is None or not squeezes or not fits:
                yield None
                continue
            for each in squeezes:
                yield each.outputs[0], index, order


def _taken(node: ir.Node, axis: int) -> Iterator[tuple[ir.Value, int | None]]:
    """Yield the outputs of a node that hold one part, with its index; None for the index of anything else."""
    if node.op_type == "Split" and node.attributes.get_int("axis", 0) in (axis, axis - 5):
        sizes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else np.ones(len(node.outputs))
        whole = sizes is not None and (sizes == 1).all()
        yield from ((output, index if whole else None) for index, output in enumerate(node.outputs) if output.uses())
        return
    index = None
    if node.op_type == "Slice":
        bounds = [constant_of(each) for each in node.inputs[1:4]]
        if len(bounds) == 3 and all(each is not None and each.size == 1 for each in bounds):
            start, end, along = (int(each.item()) for each in bounds if each is not None)
            index = start if end == start + 1 and along in (axis, axis - 5) else None
    yield node.outputs[0], index
