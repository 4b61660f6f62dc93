"""Applies a quantization plan: replaces dense layers, the vocabulary head and embedding tables by quantized ones."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .activations import add_quantized
from .dense import Dense, Site, dense_sites, is_table
from .graph import add_constant, add_node, clean
from .quantization_plan import LOWER_STEPS, QuantizationPlan, Step, StepPlan

__all__ = ["apply_plan"]


def apply_plan(model: ir.Model, plan: QuantizationPlan, steps: Mapping[str, Step], *, switches: bool = False) -> None:
    """Replace dense layers and embedding tables by quantized ones, in place.

    Args:
        model: A copy of the graph that the plan was made for.
        plan: The plan.
        steps: The step of each site that is not plain int8.
        switches: Keep both versions, and add an input `quantized` [sites] that selects the sites to quantize.
    """
    graph = model.graph
    replace = _Switches(graph, list(plan.sites)) if switches else _replace
    stored: dict[str, ir.Value] = {}
    if not plan.keeps_tables(steps):
        for node in [each for each in graph if each.op_type == "Gather" and is_table(each.inputs[0])]:
            _replace("", node.outputs[0], _looked_up(graph, node, plan, stored))
    # Backwards, because the activation of a layer is the output of an earlier one, which must not be replaced yet.
    for site in reversed(dense_sites(graph)):
        step = steps.get(site.name, "int8")
        if step != "fp32":
            found = _products(graph, site, plan.sites[site.name].steps[step], stored)
            for layer, value in zip(site.layers, found, strict=True):
                replace(site.name, layer.last.outputs[0], value)
    graph.opset_imports.setdefault("com.microsoft", 1)
    clean(model)


_Replace = Callable[[str, ir.Value, ir.Value], None]
"""Replaces a value: its site, the old value, the new value."""


def _replace(_site: str, old: ir.Value, new: ir.Value) -> None:
    old.replace_all_uses_with(new, replace_graph_outputs=True)


class _Switches:
    """Selects between old and new values by an input of the graph."""

    def __init__(self, graph: ir.Graph, sites: Sequence[str]) -> None:
        self._graph = graph
        self._sites = list(sites)
        self._flags = ir.val("quantized", dtype=ir.DataType.BOOL, shape=[len(sites)])
        graph.inputs.append(self._flags)

    def __call__(self, site: str, old: ir.Value, new: ir.Value) -> None:
        # Both versions stay in the graph, and the flag of the site selects one at run time.
        place = add_constant(self._graph, "site", np.array([self._sites.index(site)]))
        users = list(old.uses())
        flag = add_node(self._graph, "Gather", [self._flags, place], {"axis": 0})
        chosen = add_node(self._graph, "Where", [flag, new, old])
        for use in users:
            use.node.replace_input_with(use.idx, chosen)


def _looked_up(graph: ir.Graph, node: ir.Node, plan: QuantizationPlan, stored: dict[str, ir.Value]) -> ir.Value:
    """Add nodes that look up both bytes and the scale of a row, and combine them."""
    table = node.inputs[0]
    assert table is not None  # noqa: S101
    name = table.name or ""
    held = plan.tables[name]
    if name not in stored:
        stored[name] = add_constant(graph, f"{name}_int8", held.upper)
        stored[f"{name}_lower"] = add_constant(graph, f"{name}_int8_lower", held.lower)

    # (upper + lower / 256) * scale, for the rows that the ids select; the table is never dequantized as a whole.
    def rows(constant: ir.Value) -> ir.Value:
        return add_node(graph, "Gather", [constant, node.inputs[1]], {"axis": 0})

    upper, lower = (
        add_node(graph, "Cast", [rows(each)], {"to": ir.DataType.FLOAT})
        for each in (stored[name], stored[f"{name}_lower"])
    )
    fine = add_constant(graph, "halves", np.array(1 / LOWER_STEPS, np.float32))
    whole = add_node(graph, "Add", [upper, add_node(graph, "Mul", [lower, fine])])
    return add_node(graph, "Mul", [whole, rows(add_constant(graph, f"{name}_scale", held.scales[:, None]))])


def _products(graph: ir.Graph, site: Site, plan: StepPlan, stored: dict[str, ir.Value]) -> list[ir.Value]:
    # Quantized once for all layers that take the activation, such as the projections for Q, K and V.
    values, scale, zero_point = add_quantized(graph, site.activation, plan.ranges)
    found = []
    for layer in site.layers:
        matrix, scales = _weights(graph, layer, plan, stored)
        inputs = [values, matrix, scale, scales, zero_point, None, _bias(graph, layer)]
        found.append(add_node(graph, "MatMulIntegerToFloat", inputs, domain="com.microsoft"))
    return found


def _bias(graph: ir.Graph, layer: Dense) -> ir.Value | None:
    return None if layer.bias is None else add_constant(graph, f"{layer.name}_bias", layer.bias)


def _weights(graph: ir.Graph, layer: Dense, plan: StepPlan, stored: dict[str, ir.Value]) -> tuple[ir.Value, ir.Value]:
    """Return the int8 weights [inputs, outputs], with repeated rows for outlier columns, and the scales."""
    held = plan.weights[layer.name]
    scales = add_constant(graph, f"{layer.name}_scale", held.scales)
    table = stored.get(layer.table.name or "") if layer.table is not None else None
    if table is not None:
        # Stored once, together with the embeddings; ONNX Runtime folds the transposition when it loads the file.
        return add_node(graph, "Transpose", [table], {"perm": [1, 0]}), scales
    name = layer.weights_name
    if name not in stored:
        # Each outlier column of the activation multiplies a copy of its channel's row.
        rows = np.concatenate([held.weights, held.weights[plan.ranges.columns]])
        stored[name] = add_constant(graph, f"{layer.name}_int8", np.ascontiguousarray(rows))
    return stored[name], scales
