"""Splits the packed projection of queries, keys and values into three dense layers.

Their rows can then be selected, and their attention matched, as in models that have three layers.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from .dense import dense_of
from .graph import add_constant, add_node, constant_of
from .shapes import Shape

__all__ = ["split_packed_projection"]

_PARTS_AXIS = 2
"""Axis of queries, keys and values in [batch, length, parts, heads, width]."""


def split_packed_projection(graph: ir.Graph, node: ir.Node, shapes: dict[str, Shape]) -> None:
    """Split a dense layer whose output a Reshape node divides into parts, [batch, length, parts, heads, width].

    Nothing is done to any other node, or if a use of the divided value is not the selection of one part.

    Args:
        graph: The graph, modified in place; unused nodes remain.
        node: Any node of it.
        shapes: Symbolic shapes by value name.
    """
    shape = shapes.get(node.outputs[0].name or "", ()) if node.op_type == "Reshape" else ()
    layer = dense_of(node.inputs[0]) if len(shape) == 5 and shape[:2] == ("B", "L") else None
    sizes = [size for size in shape[2:] if isinstance(size, int)]
    if layer is None or layer.table is not None or len(sizes) != 3 or np.prod(sizes) != layer.weights.shape[1]:
        return
    found = [part for use in node.outputs[0].uses() for part in _selections(use.node, node.outputs[0])]
    if any(part is None for part in found) or not found:
        return
    dense: dict[int, ir.Value] = {}
    for output, index, order in (part for part in found if part is not None):
        if index not in dense:
            dense[index] = _part(graph, node, index, sizes)
        value = dense[index]
        if order != (0, 1, 2, 3):
            value = add_node(graph, "Transpose", [value], {"perm": order}, before=node)
        output.replace_all_uses_with(value, replace_graph_outputs=True)


def _part(graph: ir.Graph, node: ir.Node, index: int, sizes: list[int]) -> ir.Value:
    """Add the dense layer of one part, [batch, length, heads, width]."""
    layer = dense_of(node.inputs[0])
    assert layer is not None  # noqa: S101
    _, heads, width = sizes
    columns = slice(index * heads * width, (index + 1) * heads * width)
    # A slice refers to the memory of all parts, so each gets its own.
    weights = np.ascontiguousarray(layer.weights[:, columns])
    value = add_node(
        graph,
        "MatMul",
        [layer.node.inputs[0], add_constant(graph, f"{layer.weights_name}_{index}", weights)],
        before=node,
    )
    if layer.bias is not None:
        bias = np.ascontiguousarray(layer.bias[columns])
        value = add_node(
            graph, "Add", [value, add_constant(graph, f"{layer.weights_name}_{index}_bias", bias)], before=node
        )
    target = add_constant(graph, "heads_shape", np.array([0, 0, heads, width]))
    return add_node(graph, "Reshape", [value, target], before=node)


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
