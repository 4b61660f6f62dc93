"""The one form of a graph that the passes are written for, whichever exporter it came from.

torch has had two exporters and transformers has one of its own; each writes the same model in other operators. What
they differ in is settled here, once, so that no pass has to know: functions are inlined, constants are initializers,
attention is products and a softmax, keys are turned in one step, and shapes that follow from the model alone are
numbers.
"""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from .graph import add_constant, add_node, constant_of, forget_shapes
from .shapes import Observed, Shape, observe
from .spell_out import SPELLED_OUT

__all__ = ["normalize"]

_NEWEST = 20
"""Version of ONNX that the oldest ONNX Runtime reads which a bundle may meet."""

_SMALL_BYTES = 1024

_BRANCHES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def normalize(model: ir.Model, inputs: Sequence[str], token_id: int) -> None:
    """Bring a graph into the form that the passes expect, in place; its answers stay what they are.

    Args:
        model: A graph whose first inputs are all [batch, length].
        inputs: Names of its inputs.
        token_id: An ordinary token to run it with.

    Raises:
        ExportError: ONNX Runtime cannot run the model.
    """
    for each in (
        common.InlinePass(),
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.ClearMetadataAndDocStringPass(),
        common.RemoveUnusedNodesPass(),
    ):
        each(model)
    graph = model.graph
    forget_shapes(graph)
    _name_axes(graph, inputs)
    found = observe(model, inputs, token_id)
    _drop_identities(graph, found)
    for node in list(graph):
        if node.op_type in SPELLED_OUT.get(node.domain, ()):
            SPELLED_OUT[node.domain][node.op_type](graph, node, found)
        elif node.op_type == "Reshape" and _positive(node.outputs[0], found):
            # Only of a shape with a zero in it do the two ways to read zeros differ.
            node.attributes.pop("allowzero", None)
    _fold(graph, found)
    for node in list(graph):
        _turn_at_once(graph, node, found.shapes)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    for value in list(graph.inputs):
        if not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)
    _lower_version(model)


def _drop_identities(graph: ir.Graph, found: Observed) -> None:
    """Remove nodes that return their input as it is; those in branches stay, whose outputs may come from outside."""
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        if source is None or node.outputs[0].is_graph_output() or node.domain not in ("", "ai.onnx"):
            continue
        kinds = [found.kinds.get(each.name or "") for each in (source, node.outputs[0])]
        same = node.op_type == "Cast" and kinds[0] is not None and kinds[0] == kinds[1]
        if node.op_type == "Identity" or same or (node.op_type == "Concat" and len(node.inputs) == 1):
            node.outputs[0].replace_all_uses_with(source)
            graph.remove(node, safe=True)


def _name_axes(graph: ir.Graph, inputs: Sequence[str]) -> None:
    """Call batch and length the same in all inputs, whatever symbols the exporter had for them."""
    axes = ["batch_size", "sequence_length"]
    for value in graph.inputs:
        if value.name in inputs:
            value.shape = ir.Shape(axes)
    logits = graph.outputs[0]
    if logits.shape is not None and len(logits.shape) == 3:
        logits.shape = ir.Shape([*axes, logits.shape[2]])


def _shape_of(value: ir.Value | None, shapes: dict[str, Shape]) -> Shape:
    return shapes.get(value.name or "", ("?",)) if value is not None else ("?",)


def _positive(value: ir.Value, found: Observed) -> bool:
    shape = found.shapes.get(value.name or "")
    return shape is not None and 0 not in shape


def _fold(graph: ir.Graph, found: Observed) -> None:
    """Turn what follows from constants, and from dimensions that are the same for every text, into constants."""
    constant = {value for value in graph.initializers.values() if value.const_value is not None}
    for node in list(graph):
        if node.domain not in ("", "ai.onnx") or any(each.type in _BRANCHES for each in node.attributes.values()):
            continue
        # What a CastLike takes its type from is no part of its value.
        given = [each for each in node.inputs[: 1 if node.op_type == "CastLike" else None] if each is not None]
        follows = bool(given) and all(each in constant for each in given)
        arrays = [found.values.get(output.name or "") for output in node.outputs]
        if any(each is None for each in arrays) or not (follows or _takes_fixed_dims(node, found.shapes)):
            continue
        if any(output.is_graph_output() for output in node.outputs):
            continue
        if follows:
            constant.update(node.outputs)
        size = sum(each.nbytes for each in arrays if each is not None)
        if size > _SMALL_BYTES and not (follows and _saves(node, size)):
            continue
        for output, array in zip(node.outputs, arrays, strict=True):
            assert array is not None  # noqa: S101
            held = add_constant(graph, f"{output.name}_folded", array)
            output.replace_all_uses_with(held)
            found.shapes[held.name or ""] = array.shape
            constant.add(held)
        graph.remove(node, safe=True)


def _saves(node: ir.Node, size: int) -> bool:
    """Tell whether a large constant may take the place of those that it is made of.

    Bytes that are dequantized stay bytes, and an embedding table that is turned for the head stays one table.
    """
    held = [each.const_value for each in node.inputs if each is not None]
    if size > sum(each.nbytes if each is not None else size for each in held):
        return False
    source = node.inputs[0]
    return node.op_type != "Transpose" or source is None or len(list(source.uses())) == 1


def _takes_fixed_dims(node: ir.Node, shapes: dict[str, Shape]) -> bool:
    """Tell whether a node picks dimensions that are numbers out of the shape of a value."""
    taken = node.inputs[0] if node.op_type in ("Gather", "Slice") else None
    source = node if node.op_type == "Shape" else taken.producer() if taken is not None else None
    value = source.inputs[0] if source is not None and source.op_type == "Shape" else None
    shape = shapes.get(value.name or "") if value is not None else None
    if source is None or shape is None:
        return False
    start, end = source.attributes.get_int("start", 0), source.attributes.get_int("end", len(shape))
    dims = np.array(shape[start:end], object)
    if node is not source:
        wanted = [constant_of(each) for each in node.inputs[1:]]
        if any(each is None for each in wanted):
            return False
        if node.op_type == "Gather":
            dims = np.atleast_1d(dims[wanted[0]])
        else:
            begins, ends, *rest = (np.asarray(each).reshape(-1) for each in wanted)
            step = int(rest[1][0]) if len(rest) > 1 else 1
            dims = dims[int(begins[0]) : int(ends[0]) : step]
    return len(dims) > 0 and all(isinstance(each, int) for each in dims)


def _turn_at_once(graph: ir.Graph, node: ir.Node, shapes: dict[str, Shape]) -> None:
    """Write keys whose batch and heads are joined, turned and parted again as one transposition of [B, heads, ., .]."""
    turn = node.inputs[0].producer() if node.op_type == "Reshape" and node.inputs[0] is not None else None
    if turn is None or turn.op_type != "Transpose" or turn.attributes.get_ints("perm", []) != (0, 2, 1):
        return
    join = turn.inputs[0].producer() if turn.inputs[0] is not None else None
    if join is None or join.op_type != "Reshape" or join.inputs[0] is None:
        return
    keys = join.inputs[0]
    before, joined = _shape_of(keys, shapes), _shape_of(join.outputs[0], shapes)
    after = _shape_of(node.outputs[0], shapes)
    # A dimension that is neither a number, the batch nor the length may be another one each time that it is met.
    if len(before) != 4 or "?" in before or len(joined) != 3:
        return
    if joined[1:] != before[2:] or after != (*before[:2], before[3], before[2]):
        return
    turned = add_node(graph, "Transpose", [keys], {"perm": [0, 1, 3, 2]}, before=node)
    shapes[turned.name or ""] = after
    node.outputs[0].replace_all_uses_with(turned, replace_graph_outputs=True)


def _lower_version(model: ir.Model) -> None:
    """Declare the version of ONNX that old ONNX Runtimes read, where every operator is there the same."""
    domain = "" if "" in model.graph.opset_imports else "ai.onnx"
    version = model.graph.opset_imports.get(domain, _NEWEST)
    if version <= _NEWEST:
        return
    for node in model.graph.all_nodes():
        if node.domain in ("", "ai.onnx"):
            try:
                older = onnx.defs.get_schema(node.op_type, _NEWEST, "")
            except onnx.defs.SchemaError:
                return
            if not set(node.attributes) <= set(older.attributes) or len(node.inputs) > older.max_input:
                return
    model.graph.opset_imports[domain] = _NEWEST
