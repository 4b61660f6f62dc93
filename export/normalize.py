"""Brings graphs of different exporters into one form, so that the other passes need not tell exporters apart.

PyTorch's tracer, PyTorch's newer exporter and the exporter of transformers write the same model with different
operators. After this pass, functions are inlined, constants are initializers, attention consists of matmuls and a
softmax, keys are transposed in one step, and dimensions that do not depend on the input are constants.
"""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from .decompose import DECOMPOSITIONS
from .graph import add_constant, add_node, constant_of, forget_shapes
from .packed import split_packed_layer
from .shapes import Observed, Shape, observe

__all__ = ["normalize"]

_NEWEST_OPSET = 20
"""The newest opset that the oldest supported ONNX Runtime can read."""

_SMALL_BYTES = 1024
"""Size up to which a constant is always folded: it costs nothing, and may enable further folding."""

_SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
"""Attribute types of the branches of an If and the body of a Loop."""


def normalize(model: ir.Model, inputs: Sequence[str], token_id: int) -> None:
    """Bring a graph into the form that the other passes expect, in place, without changing its results.

    Args:
        model: A graph whose inputs are all [batch, length].
        inputs: Names of its inputs.
        token_id: An ordinary token, to run the graph with.

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
        if node.op_type in DECOMPOSITIONS.get(node.domain, ()):
            DECOMPOSITIONS[node.domain][node.op_type](graph, node, found)
        elif node.op_type == "Reshape" and _has_no_empty_axis(node.outputs[0], found):
            # With `allowzero`, a 0 in the shape means an empty axis instead of "copy from the input". No axis is empty
            # here, so the attribute has no effect yet, but the row pass writes shapes with 0 for "copy".
            node.attributes.pop("allowzero", None)
    _fold(graph, found)
    # What the constants replaced must not count as a use.
    common.RemoveUnusedNodesPass()(model)
    for node in list(graph):
        _transpose_keys_in_one_step(graph, node, found.shapes)
        split_packed_layer(graph, node, found.shapes)
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
    """Give the batch and length axes the same names in all inputs; some exporters name them differently in each."""
    axes = ["batch_size", "sequence_length"]
    for value in graph.inputs:
        if value.name in inputs:
            value.shape = ir.Shape(axes)
    logits = graph.outputs[0]
    if logits.shape is not None and len(logits.shape) == 3:
        logits.shape = ir.Shape([*axes, logits.shape[2]])


def _shape_of(value: ir.Value | None, shapes: dict[str, Shape]) -> Shape:
    return shapes.get(value.name or "", ("?",)) if value is not None else ("?",)


def _has_no_empty_axis(value: ir.Value, found: Observed) -> bool:
    shape = found.shapes.get(value.name or "")
    return shape is not None and 0 not in shape


def _fold(graph: ir.Graph, found: Observed) -> None:
    """Replace values by constants if they depend on nothing but constants and fixed dimensions."""
    constant = {value for value in graph.initializers.values() if value.const_value is not None}
    for node in list(graph):
        if node.domain not in ("", "ai.onnx") or any(each.type in _SUBGRAPHS for each in node.attributes.values()):
            continue
        # The second input of a CastLike gives the type only, so it does not have to be constant.
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
    """Return whether folding a large constant does not make the model larger.

    Dequantized int8 weights stay int8, and an embedding table that a tied head transposes is stored once.
    """
    held = [each.const_value for each in node.inputs if each is not None]
    if size > sum(each.nbytes if each is not None else size for each in held):
        return False
    source = node.inputs[0]
    return node.op_type != "Transpose" or source is None or len(list(source.uses())) == 1


def _takes_fixed_dims(node: ir.Node, shapes: dict[str, Shape]) -> bool:
    """Return whether a node reads only fixed dimensions of a value's shape, as `x.shape[-1]` does."""
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
            dims = dims[np.asarray(wanted[0]).reshape(-1)]
        else:
            begins, ends, *rest = (np.asarray(each).reshape(-1) for each in wanted)
            step = int(rest[1][0]) if len(rest) > 1 else 1
            dims = dims[int(begins[0]) : int(ends[0]) : step]
    return len(dims) > 0 and all(isinstance(each, int) for each in dims)


def _transpose_keys_in_one_step(graph: ir.Graph, node: ir.Node, shapes: dict[str, Shape]) -> None:
    """Replace the three steps in which PyTorch's newer exporter transposes keys by one Transpose.

    It reshapes [batch, heads, length, width] to three axes, transposes the last two, and reshapes back to four.
    """
    turn = node.inputs[0].producer() if node.op_type == "Reshape" and node.inputs[0] is not None else None
    if turn is None or turn.op_type != "Transpose" or turn.attributes.get_ints("perm", []) != (0, 2, 1):
        return
    join = turn.inputs[0].producer() if turn.inputs[0] is not None else None
    if join is None or join.op_type != "Reshape" or join.inputs[0] is None:
        return
    keys = join.inputs[0]
    before, joined = _shape_of(keys, shapes), _shape_of(join.outputs[0], shapes)
    after = _shape_of(node.outputs[0], shapes)
    # `?` stands for any unknown dimension, so two of them are not known to be equal.
    if len(before) != 4 or "?" in before or len(joined) != 3:
        return
    if joined[1:] != before[2:] or after != (*before[:2], before[3], before[2]):
        return
    turned = add_node(graph, "Transpose", [keys], {"perm": [0, 1, 3, 2]}, before=node)
    shapes[turned.name or ""] = after
    node.outputs[0].replace_all_uses_with(turned, replace_graph_outputs=True)


def _lower_version(model: ir.Model) -> None:
    """Lower the declared opset to one that older ONNX Runtimes read, if all operators exist in it unchanged."""
    domain = "" if "" in model.graph.opset_imports else "ai.onnx"
    version = model.graph.opset_imports.get(domain, _NEWEST_OPSET)
    if version <= _NEWEST_OPSET:
        return
    for node in model.graph.all_nodes():
        if node.domain in ("", "ai.onnx"):
            try:
                older = onnx.defs.get_schema(node.op_type, _NEWEST_OPSET, "")
            except onnx.defs.SchemaError:
                return
            if not set(node.attributes) <= set(older.attributes) or len(node.inputs) > older.max_input:
                return
    model.graph.opset_imports[domain] = _NEWEST_OPSET
