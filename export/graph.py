"""Building blocks for graph passes (constants, nodes, clean-up), and the serving head."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from mlm_infer.bundle.interface import OUTPUTS

__all__ = ["add_constant", "add_node", "add_serving_head", "clean", "constant_of", "forget_shapes"]


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Add an initializer, with underscores appended to its name until it is unique."""
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def add_node(
    graph: ir.Graph,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    domain: str = "",
    before: ir.Node | None = None,
    outputs: int = 1,
) -> ir.Value:
    """Add a node, at the end or before another, and return its first output."""
    node = ir.node(op_type, inputs, dict(attributes or {}), domain=domain, num_outputs=outputs)
    if before is None:
        graph.append(node)
    else:
        graph.insert_before(before, node)
    return node.outputs[0]


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the array of an initializer, or None for anything else."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def add_serving_head(model: ir.Model, vocabulary: int) -> tuple[ir.Node, ir.Node]:
    """Turn a graph that outputs `logits` at all positions into one that outputs top-k and scores of selected rows.

    Adds the inputs `mask_positions`, `mask_rows`, `k` and `candidates`, and replaces the outputs by those that
    `mlm_infer.bundle.interface` describes.

    Args:
        model: An exported masked language model with the output `logits` [batch, length, vocabulary].
        vocabulary: Its width.

    Returns:
        Two Identity nodes that mark where row selections start: the selection of each text's masks, and that of all
        masks.
    """
    graph = model.graph
    everything = graph.outputs[0]
    everything.name = "all_logits"

    def new_input(name: str, shape: Sequence[str | int]) -> ir.Value:
        value = ir.val(name, dtype=ir.DataType.INT64, shape=list(shape))
        graph.inputs.append(value)
        return value

    new_input("mask_positions", ["batch_size", "slots"])
    new_input("mask_rows", ["rows"])
    k = new_input("k", [1])
    candidates = new_input("candidates", ["rows", "candidates"])

    # Identity nodes as markers: the row pass replaces each by a selection, as close to the inputs as it can.
    by_text = add_node(graph, "Identity", [everything])
    by_row = add_node(graph, "Identity", [by_text])
    _replace_outputs(graph, by_row, k, candidates, vocabulary)
    first, second = by_text.producer(), by_row.producer()
    assert first is not None  # noqa: S101
    assert second is not None  # noqa: S101
    return first, second


def _replace_outputs(graph: ir.Graph, rows: ir.Value, k: ir.Value, candidates: ir.Value, vocabulary: int) -> None:
    """Add the nodes that turn logits into `OUTPUTS`, and make those the outputs of the graph."""
    row_shape = add_constant(graph, "row_shape", np.array([-1, vocabulary]))
    logits = add_node(graph, "Reshape", [rows, row_shape])
    if graph.outputs[0].dtype == ir.DataType.FLOAT16:
        logits = add_node(graph, "Cast", [logits], {"to": ir.DataType.FLOAT})
    last = add_constant(graph, "last_axis", np.array([-1]))
    # log(sum(exp(x))) = max(x) - log(max(softmax(x))); unlike ReduceLogSumExp, ONNX Runtime's Softmax is vectorized.
    probabilities = add_node(graph, "Softmax", [logits], {"axis": -1})
    largest_logit = add_node(graph, "ReduceMax", [logits, last], {"keepdims": 1})
    largest_probability = add_node(graph, "ReduceMax", [probabilities, last], {"keepdims": 1})
    normalizer = add_node(graph, "Sub", [largest_logit, add_node(graph, "Log", [largest_probability])])
    top = ir.node("TopK", [logits, k], {"axis": -1, "largest": 1, "sorted": 1}, num_outputs=2)
    graph.append(top)
    top_logprobs = add_node(graph, "Sub", [top.outputs[0], normalizer])
    chosen = add_node(graph, "GatherElements", [logits, candidates], {"axis": -1})
    candidate_logprobs = add_node(graph, "Sub", [chosen, normalizer])
    outputs: dict[str, tuple[ir.Value, ir.DataType, list[str | int]]] = {
        "top_ids": (top.outputs[1], ir.DataType.INT64, ["rows", "k"]),
        "top_logprobs": (top_logprobs, ir.DataType.FLOAT, ["rows", "k"]),
        "candidate_logprobs": (candidate_logprobs, ir.DataType.FLOAT, ["rows", "candidates"]),
        "logits": (logits, ir.DataType.FLOAT, ["rows", vocabulary]),
        "log_normalizer": (normalizer, ir.DataType.FLOAT, ["rows", 1]),
    }
    graph.outputs.clear()
    for name in OUTPUTS:
        value, dtype, shape = outputs[name]
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        graph.outputs.append(value)


def forget_shapes(graph: ir.Graph) -> None:
    """Remove the shape annotations of all intermediate values.

    ONNX Runtime plans its memory by them, and they no longer hold once rows are selected.
    """
    for node in graph.all_nodes():
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None


def clean(model: ir.Model) -> None:
    """Remove unused nodes and duplicate subexpressions, and sort the nodes topologically."""
    # Duplicates first, since merging them leaves unused nodes; those of small constants let nodes be duplicates.
    for each in (
        common.DeduplicateInitializersPass(size_limit=64),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
    ):
        each(model)
