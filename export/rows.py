"""The graph pass that selects the mask rows early, so that as little as possible is computed at other positions.

The exported graph computes logits at every position, but only the masked ones are needed. The pass selects their rows
at the logits and then moves the selection towards the inputs, past every operation that treats rows independently:
dense layers, layer norms, activation functions, residuals, softmax, and the queries of attention. The vocabulary head
and all of the last layer except its keys and values then run at the masked rows only. The pass is defined on operations
and does not know architectures; it stops at an operation that it does not know.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .graph import add_constant, add_node, constant_of
from .shapes import Shape

__all__ = ["Selection", "flat_rows", "move_rows_up", "text_rows"]

_ELEMENTWISE = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "BiasGelu",
        "Cast",
        "Clip",
        "Div",
        "Dropout",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "FastGelu",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSwish",
        "Identity",
        "IsNaN",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "QuickGelu",
        "Reciprocal",
        "Relu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Sub",
        "Tanh",
        "Where",
    ]
)
_NORMS = frozenset(
    ["LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"]
)
_REDUCTIONS = frozenset(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"])

Shapes = dict[str, Shape]


@dataclass(frozen=True, slots=True)
class Selection:
    """A way to select rows.

    Attributes:
        gather: Inserts, before a node, the nodes that select rows of a [batch, length, ...] value.
        keeps_batch_axis: Whether the selected rows are still grouped by text. Only then can they be combined with all
            rows of their text, as attention combines queries with keys.
    """

    gather: Callable[[ir.Graph, ir.Value, Shape, ir.Node], ir.Value]
    keeps_batch_axis: bool


def text_rows(positions: ir.Value) -> Selection:
    """Select `positions` [batch, slots] of batch * length: [batch, length, ...] becomes [batch, slots, ...]."""

    def gather(graph: ir.Graph, value: ir.Value, shape: Shape, before: ir.Node) -> ir.Value:
        flat_shape = add_constant(graph, "flat_shape", np.array([-1, *shape[2:]], np.int64))
        flat = add_node(graph, "Reshape", [value, flat_shape], before=before)
        return add_node(graph, "Gather", [flat, positions], {"axis": 0}, before=before)

    return Selection(gather, keeps_batch_axis=True)


def flat_rows(rows: ir.Value) -> Selection:
    """Select `rows` [rows] of batch * slots: [batch, slots, ...] becomes [1, rows, ...]."""

    def gather(graph: ir.Graph, value: ir.Value, shape: Shape, before: ir.Node) -> ir.Value:
        flat_shape = add_constant(graph, "flat_shape", np.array([-1, *shape[2:]], np.int64))
        flat = add_node(graph, "Reshape", [value, flat_shape], before=before)
        chosen = add_node(graph, "Gather", [flat, rows], {"axis": 0}, before=before)
        return add_node(graph, "Unsqueeze", [chosen, add_constant(graph, "first_axis", np.array([0]))], before=before)

    return Selection(gather, keeps_batch_axis=False)


def move_rows_up(graph: ir.Graph, end: ir.Node, shapes: Shapes, selection: Selection, width: int) -> list[ir.Node]:
    """Select rows of the first input of a node, as close to the graph's inputs as the operations allow.

    Args:
        graph: The graph, modified in place.
        end: The node that needs only some rows (axis 1) of its first input.
        shapes: Symbolic shapes by value name, before any selection; the selection does not move past a node with
            unknown shapes. Shapes of selected values are added.
        selection: How to select rows.
        width: Size of the last axis of that input.

    Returns:
        The nodes that now run on selected rows only.
    """
    # The selection may only stop at values whose rows can be gathered. If it would stop elsewhere, the node that takes
    # the value is refused and the analysis repeated, since this can change what is needed of other values. Each round
    # refuses at least one node, so it terminates.
    refused: set[ir.Node] = set()
    while True:
        wanted = _wanted_rows(graph, end, shapes, selection, refused)
        bad = [
            node
            for node, inputs in wanted.items()
            for value, axis in zip(node.inputs, inputs, strict=True)
            if axis is not None and value is not None
            if not (value.producer() in wanted or _can_gather(shapes.get(value.name or ""), axis))
        ]
        if not bad:
            break
        refused.update(bad)
    # A value that several nodes need at the rows is selected once.
    gathered: dict[ir.Value, ir.Value] = {}

    def selected(value: ir.Value, before: ir.Node) -> ir.Value:
        if value.producer() in wanted:
            return value
        if value not in gathered:
            shape = shapes.get(value.name or "", ("B", "L", width))
            chosen = gathered[value] = selection.gather(graph, value, shape, before)
            # The second selection moves past the values of the first one, so it needs their names and shapes.
            chosen.name = chosen.name or f"{value.name}_rows"
            shapes[chosen.name] = shape
        return gathered[value]

    # In graph order, so that a selection is inserted before the first node that needs it.
    order = [node for node in graph if node in wanted]
    for node in order:
        for index, axis in enumerate(wanted[node]):
            value = node.inputs[index]
            if axis is not None and value is not None:
                node.replace_input_with(index, selected(value, node))
        if node.op_type == "Reshape":
            _fix_reshape(graph, node, shapes)
    first = end.inputs[0]
    if first is not None:
        end.replace_input_with(0, selected(first, end))
    return order


def _can_gather(shape: Shape | None, axis: int) -> bool:
    return (
        shape is not None and axis == 1 and shape[:2] == ("B", "L") and all(isinstance(dim, int) for dim in shape[2:])
    )


def _wanted_rows(
    graph: ir.Graph, end: ir.Node, shapes: Shapes, selection: Selection, refused: set[ir.Node]
) -> dict[ir.Node, list[int | None]]:
    """Return the nodes of whose outputs only rows are needed, with the row axis of each input.

    The graph is traversed backwards, so that all users of a value are known when its producer is reached. A value that
    one user needs whole, or that two users need along different axes, is computed whole.
    """
    axes: dict[ir.Value, int | None] = {}  # None: needed whole

    def want(value: ir.Value | None, axis: int | None) -> None:
        if value is not None:
            axes[value] = axis if axes.get(value, axis) == axis else None

    wanted: dict[ir.Node, list[int | None]] = {}
    for output in graph.outputs:
        want(output, None)
    for node in reversed(list(graph)):
        if node is end:
            want(node.inputs[0], 1)
            for value in node.inputs[1:]:
                want(value, None)
            continue
        outputs = [axes[output] for output in node.outputs if output in axes]
        if not outputs:
            continue
        inputs = None
        if None not in outputs and len(set(outputs)) == 1 and node not in refused:
            axis = outputs[0]
            assert axis is not None  # noqa: S101
            inputs = _row_axes(node, axis, shapes, selection)
        if inputs is not None:
            wanted[node] = inputs
        for value, axis in zip(node.inputs, inputs or [None] * len(node.inputs), strict=True):
            want(value, axis)
    return wanted


def _row_axes(node: ir.Node, axis: int, shapes: Shapes, selection: Selection) -> list[int | None] | None:
    """Return the row axis of each input if only rows along the output's `axis` are needed; None if impossible."""
    inputs = [shapes.get(value.name or "") if value is not None else () for value in node.inputs]
    output = shapes.get(node.outputs[0].name or "")
    if output is None or any(shape is None for shape in inputs):
        return None
    known = [shape for shape in inputs if shape is not None]
    found = _rule(node, axis, known, output)
    if found is None or all(each is None for each in found):
        return None
    # A selection without the batch axis cannot be combined with values that have it, such as the keys of whole texts.
    if not selection.keeps_batch_axis and any(
        (each is None and "B" in shape) or each not in (None, 1) for each, shape in zip(found, known, strict=True)
    ):
        return None
    return found


def _rule(node: ir.Node, axis: int, inputs: Sequence[Shape], output: Shape) -> list[int | None] | None:
    rest: list[int | None] = [None] * (len(inputs) - 1)
    op = node.op_type
    if op in _ELEMENTWISE:
        return _broadcast_axes(axis, inputs, output)
    if op in _NORMS:
        # A norm over the last axis treats rows independently. The fused variants also have a residual input.
        skip = op.startswith("Skip")
        at = node.attributes.get_int("axis", -1)
        if axis >= (at if at >= 0 else len(output) + at):
            return None
        if skip:
            return [axis, axis, *rest[1:]] if inputs[0] == inputs[1] else None
        return [axis, *rest]
    if op in ("Softmax", "LogSoftmax"):
        # Over any other axis than that of the rows, such as the keys of attention scores.
        at = node.attributes.get_int("axis", -1)
        return [axis] if axis != (at if at >= 0 else len(output) + at) else None
    if op in _REDUCTIONS:
        return [axis, *rest] if _reduces_last(node, len(inputs[0])) and axis < len(output) - 1 else None
    if op == "MatMul":
        return _matmul_axes(axis, inputs, output)
    if op == "MultiHeadAttention":
        # Queries at the selected rows, keys and values at all. A bias or a cache would need a selection of its own.
        return [0 + axis, *rest] if axis == 1 and all(not shape for shape in inputs[5:]) else None
    if op == "RotaryEmbedding":
        # Each row with its own position; the tables of angles hold all positions.
        return [axis, axis, *rest[1:]] if axis == 1 else None
    if op in ("Slice", "Split"):
        return [axis, *rest] if _cut_axis(node, len(output)) not in (None, axis) else None
    if op == "Transpose":
        return [node.attributes.get_ints("perm", list(range(len(output)))[::-1])[axis]]
    if op == "Reshape":
        return _reshape_axes(axis, inputs[0], output)
    return None


def _cut_axis(node: ir.Node, rank: int) -> int | None:
    """Return the only axis along which a Slice or Split cuts, as the halves of a gated layer are cut apart."""
    if node.op_type == "Split":
        at = node.attributes.get_int("axis", 0)
    else:
        axes = constant_of(node.inputs[3]) if len(node.inputs) > 3 else None
        if axes is None or axes.size != 1:
            return None
        at = int(axes.item())
    return at if at >= 0 else rank + at


def _broadcast_axes(axis: int, inputs: Sequence[Shape], output: Shape) -> list[int | None] | None:
    # numpy aligns shapes at the last axis. An input without the row axis, or of size 1 there, is broadcast as it is.
    found: list[int | None] = []
    for shape in inputs:
        own = axis - (len(output) - len(shape))
        if own < 0 or shape[own] == 1:
            found.append(None)
        elif shape[own] == "L":
            found.append(own)
        else:
            return None
    return found


def _matmul_axes(axis: int, inputs: Sequence[Shape], output: Shape) -> list[int | None] | None:
    # Rows of the product are rows of the left factor; the right one, weights or keys, is needed whole.
    left, right = inputs
    if axis != len(output) - 2 or len(left) != len(output) or len(right) < 2:
        return None
    return [axis, None]


def _reduces_last(node: ir.Node, rank: int) -> bool:
    axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return axes is not None and axes.numpy().tolist() in ([-1], [rank - 1])


def _reshape_axes(axis: int, source: Shape, output: Shape) -> list[int | None] | None:
    """Allow a reshape that only splits or joins axes after batch and rows, such as the split into heads."""
    fits = axis == 1 and source[:2] == output[:2] == ("B", "L")
    return [1, None] if fits and all(isinstance(dim, int) for dim in output[2:]) else None


def _fix_reshape(graph: ir.Graph, node: ir.Node, shapes: Shapes) -> None:
    """Replace the shape of a reshape, which may contain the full length, by one that copies batch and rows (0)."""
    output = shapes[node.outputs[0].name or ""]
    node.replace_input_with(1, add_constant(graph, "row_shape", np.array([0, 0, *output[2:]], np.int64)))
